"""A daemon's state, live in a terminal: `link` asks the daemon, `pictures` draws, `app` is what a person sees."""
