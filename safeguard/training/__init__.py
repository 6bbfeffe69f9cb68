"""Training of what erasers add to a frozen pipeline: one module a method."""
