//! Deliberate bugs for the simulator to find (docs/testing.md). Compiled in only with `--cfg mutants`;
//! otherwise every question is answered "no" at compile time.

/// Chooses the deliberate bug of this process; zero for none.
#[cfg(mutants)]
pub fn activate(number: u32) {
    ACTIVE.store(number, core::sync::atomic::Ordering::Relaxed);
}

#[cfg(mutants)]
static ACTIVE: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Whether the deliberate bug with this number is on.
#[cfg(mutants)]
#[must_use]
pub fn is_active(number: u32) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == number
}

/// Whether the deliberate bug with this number is on: never, in this build.
#[cfg(not(mutants))]
#[must_use]
pub const fn is_active(_number: u32) -> bool {
    false
}
