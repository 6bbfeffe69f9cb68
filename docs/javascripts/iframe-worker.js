// Browsers start no worker for a page that is opened as a file. There, a hidden frame runs the worker's script instead, so that
// the search works. It does what the package iframe-worker does, without fetching it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = (this.frame = document.createElement("iframe"));
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      frame.onload = () => this.start(frame.contentWindow, String(url));
      document.body.append(frame);
    }

    start(inside, url) {
      inside.postMessage = (data) => this.answer(data);
      inside.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => this.load(inside, next)), Promise.resolve());
      this.load(inside, url).then(() => {
        this.inside = inside;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    load(inside, url) {
      return new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        Object.assign(script, {src: url, onload: done, onerror: failed});
        inside.document.body.append(script);
      });
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new this.inside.MessageEvent("message", {data}));
      else this.waiting.push(data);
    }

    answer(data) {
      const event = new MessageEvent("message", {data});
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
