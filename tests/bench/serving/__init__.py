"""The endpoint beside the same requests sent to the runtime directly: each party is a process of its own."""
