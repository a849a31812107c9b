"""The scripts that made the data and the weights of this package; users need not run them."""
