"""What on this machine could serve a ladder's models: one module a kind of place. Asks and looks; decides nothing."""
