//! Small damage to an input, as links, disks and liars do it.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Numbers at which lengths and counts break.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// The longest input that is made.
const MAX_INPUT: usize = 1 << 16;

/// A few mutations of `input`; `other` is one to take parts from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    for _ in 0..random.random_range(1..=6) {
        once(input, other, random);
    }
    input.truncate(MAX_INPUT);
}

fn once(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let here = at.min(input.len().saturating_sub(1));
    match random.random_range(0..9) {
        0 if !input.is_empty() => input[here] ^= 1 << random.random_range(0..8),
        1 if !input.is_empty() => input[here] = random.random(),
        2 if !input.is_empty() => input[here] = input[here].wrapping_add_signed(random.random_range(-4..=4)),
        3 => overwrite(input, at, random),
        4 => input.truncate(at),
        5 => {
            let end = random.random_range(at..=input.len());
            input.drain(at..end);
        }
        6 => {
            let end = random.random_range(at..=input.len()).min(at + 4096);
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        7 => {
            let from = random.random_range(0..=other.len());
            let to = random.random_range(from..=other.len()).min(from + 4096);
            input.splice(at..at, other[from..to].iter().copied());
        }
        _ => {
            let mut bytes = vec![0; random.random_range(1..=16)];
            random.fill_bytes(&mut bytes);
            input.splice(at..at, bytes);
        }
    }
}

/// An edge, as binary integers and as decimal text have it.
fn overwrite(input: &mut Vec<u8>, at: usize, random: &mut StdRng) {
    let edge = EDGES[random.random_range(0..EDGES.len())];
    let bytes = match random.random_range(0..5) {
        0 => edge.to_string().into_bytes(),
        1 => edge.to_le_bytes().to_vec(),
        2 => edge.to_be_bytes().to_vec(),
        3 => edge.to_le_bytes()[..4].to_vec(),
        _ => edge.to_le_bytes()[..2].to_vec(),
    };
    let end = (at + bytes.len()).min(input.len());
    input.splice(at..end, bytes);
}
