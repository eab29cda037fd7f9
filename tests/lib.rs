//! Nothing: this package is its tests, and cargo wants a library or a program in each.
