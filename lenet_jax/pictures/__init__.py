"""From a picture of any size to the network's input."""
