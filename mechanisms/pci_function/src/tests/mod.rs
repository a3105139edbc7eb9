//! Stories and properties of whole functions.
