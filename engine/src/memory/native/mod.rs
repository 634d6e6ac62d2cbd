//! The native source: userfaultfd write-protection and PAGEMAP_SCAN.
//!
//! A process is stopped once, for a fraction of a millisecond, to take a
//! userfaultfd of its address space out of it ([`crate::sys::inject`]). From
//! then on everything is done from outside while it runs:
//!
//! ```text
//! round:   for every private mapping, ascending
//!            scan: which pages are written? protect them again   one atomic step
//!            read them, split them into content and zeroes, hand them over
//! finish:  (frozen) one scan: which pages exist, which are written
//! ```
//!
//! What makes it right:
//! - A page is protected *before* it is read. A write after the protection is
//!   found by the next scan, whatever the read saw.
//! - Memory that is new in any way (a mapping, a moved one, a page faulted in
//!   anew) is unprotected and thus dirty: forgetting is always on the safe side.
//! - A page that was protected but could not be handed over is *owed*: it is
//!   dirty for the next scan, whatever the page table says.
//! - Pages that the kernel cannot follow are read in every round and at the freeze,
//!   and sent when they differ from what was last sent of them ([`sent`]).
//! - Within one round an address is sent at most once, so that the order in
//!   which chunks arrive does not matter. The sweep only ever goes upwards.
//! - What exists at the freeze is found then, so it does not matter what was
//!   sent of memory that is gone.

mod buffers;
mod descendants;
mod emit;
mod owed;
mod sent;
mod source;
mod space;
mod sweep;
mod zero;

pub use descendants::DescendantSet;
pub use source::NativeSource;
