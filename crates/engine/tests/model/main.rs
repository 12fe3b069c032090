//! Engine and reference model, side by side on the in-memory machine.

mod figures;
mod histories;
mod reference;
