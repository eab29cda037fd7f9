//! Tests of the pages.
use super::*;
