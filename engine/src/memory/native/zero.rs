//! Telling pages of zeroes from others.

/// Bytes that are looked at between two decisions: enough for the compiler to
/// use the widest registers, few enough to leave early on the first content.
const STRIDE: usize = 128;

/// Whether all bytes are zero. `page`'s length is a multiple of 128.
pub fn is_zero(page: &[u8]) -> bool {
    debug_assert!(page.len().is_multiple_of(STRIDE));
    page.chunks_exact(STRIDE).all(|stride| {
        let (words, _) = stride.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_counts() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero(&page));
        for at in 0..page.len() {
            page[at] = 0x80;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }
}
