"""The command line: each module parses, calls and prints; the work lives in the other packages."""
