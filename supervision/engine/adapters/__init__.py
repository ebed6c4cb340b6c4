"""Where a call's audio comes from and goes to: streams of `plivo-stream-sdk` and bare WebSockets."""
