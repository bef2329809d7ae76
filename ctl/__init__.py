"""weftctl shows what a node's Weft does: it asks the daemon, or reads the node itself when that is down."""
