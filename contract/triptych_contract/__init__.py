"""What callers and servers agree on: a request's parameters, the models' cards, errors. Imports the standard library only."""
