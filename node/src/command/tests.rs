//! Tests of the commands against a served API.
use super::*;
