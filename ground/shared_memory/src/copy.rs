//! The copy of a frame, and cache hints.
//!
//! `unsafe` here: raw pointers and AVX-512 intrinsics. Below 2 KiB an inlined masked AVX-512 copy is used
//! where the CPU has it (a call to memcpy costs as much as the 64 bytes themselves); above, memcpy, which
//! uses the CPU's fast string moves. Non-temporal stores are never used: the receiver reads the frame next.
#![allow(unsafe_code)]

use crate::SharedSlice;

/// Up to here the inlined copy is used, bytes.
#[cfg(target_arch = "x86_64")]
const INLINE_LIMIT: usize = 2048;

/// The copy in use on this CPU, for reports: `"avx512"` or `"memcpy"`.
pub fn copy_method() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if have_avx512() {
        return "avx512";
    }
    "memcpy"
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn have_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("bmi2")
}

/// One frame to be copied: its first 16 bytes were read and checked and come from here, the rest from the
/// sender's memory.
#[derive(Copy, Clone)]
pub struct FrameCopy<'a> {
    /// The first 16 bytes, in memory order.
    pub head: [u64; 2],
    /// All of the frame where it was sent from; at least 16 bytes.
    pub from: SharedSlice<'a>,
    /// Where it goes; as long as `from`.
    pub to: SharedSlice<'a>,
}

/// Copies the frames of a burst: one call for all, so that the copy loop is inlined.
///
/// A frame is cut to the shorter of its two slices; one of less than 16 bytes is left alone.
#[inline]
pub fn copy_frames(frames: &[FrameCopy<'_>]) {
    #[cfg(target_arch = "x86_64")]
    if have_avx512() {
        // SAFETY: the CPU has the features.
        unsafe { copy_frames_avx512(frames) };
        return;
    }
    for frame in frames {
        let length = frame.from.len().min(frame.to.len());
        if length >= 16 {
            // SAFETY: both slices hold `length` bytes, of which the first 16 come from the head.
            unsafe {
                let to = frame.to.base().as_ptr();
                to.cast::<[u64; 2]>().write_unaligned(frame.head);
                copy_bytes(to.add(16), frame.from.base().as_ptr().add(16), length - 16);
            }
        }
    }
}

/// # Safety
/// The CPU must have AVX-512 BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2")]
unsafe fn copy_frames_avx512(frames: &[FrameCopy<'_>]) {
    for frame in frames {
        let length = frame.from.len().min(frame.to.len());
        if length < 16 {
            continue;
        }
        // SAFETY: both slices hold `length` bytes, of which the first 16 come from the head.
        unsafe {
            let to = frame.to.base().as_ptr();
            let from = frame.from.base().as_ptr();
            to.cast::<[u64; 2]>().write_unaligned(frame.head);
            if length - 16 <= INLINE_LIMIT {
                copy_avx512(to.add(16), from.add(16), length - 16);
            } else {
                std::ptr::copy(from.add(16), to.add(16), length - 16);
            }
        }
    }
}

/// Copies `length` bytes.
///
/// # Safety
/// `to..to+length` must be writable and `from..from+length` readable. If they overlap, the bytes of `to`
/// are unspecified.
#[inline(always)]
pub unsafe fn copy_bytes(to: *mut u8, from: *const u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    if length <= INLINE_LIMIT && have_avx512() {
        // SAFETY: the CPU has the features; the ranges are the caller's promise.
        unsafe { copy_avx512(to, from, length) };
        return;
    }
    // SAFETY: the ranges are valid; `copy` tolerates the overlap that a hostile peer could arrange.
    unsafe { std::ptr::copy(from, to, length) };
}

/// # Safety
/// As [`copy_bytes`], and the CPU must have AVX-512 BW and VL.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2")]
unsafe fn copy_avx512(to: *mut u8, from: *const u8, length: usize) {
    use std::arch::x86_64::{
        _bzhi_u64, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
        _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_storeu_si512,
    };
    let mut done = 0;
    // SAFETY: every access lies in 0..length; the masked ones touch only the bytes under the mask.
    unsafe {
        while length - done >= 256 {
            let a = _mm512_loadu_si512(from.add(done).cast());
            let b = _mm512_loadu_si512(from.add(done + 64).cast());
            let c = _mm512_loadu_si512(from.add(done + 128).cast());
            let d = _mm512_loadu_si512(from.add(done + 192).cast());
            _mm512_storeu_si512(to.add(done).cast(), a);
            _mm512_storeu_si512(to.add(done + 64).cast(), b);
            _mm512_storeu_si512(to.add(done + 128).cast(), c);
            _mm512_storeu_si512(to.add(done + 192).cast(), d);
            done += 256;
        }
        while length - done >= 64 {
            _mm512_storeu_si512(to.add(done).cast(), _mm512_loadu_si512(from.add(done).cast()));
            done += 64;
        }
        // What is left overlaps what is done, or itself: two plain stores are quicker than a masked one.
        let rest = length - done;
        if rest == 0 {
            return;
        }
        if length >= 64 {
            let tail = _mm512_loadu_si512(from.add(length - 64).cast());
            _mm512_storeu_si512(to.add(length - 64).cast(), tail);
        } else if length >= 32 {
            let first = _mm256_loadu_si256(from.cast());
            let last = _mm256_loadu_si256(from.add(length - 32).cast());
            _mm256_storeu_si256(to.cast(), first);
            _mm256_storeu_si256(to.add(length - 32).cast(), last);
        } else if length >= 16 {
            let first = _mm_loadu_si128(from.cast());
            let last = _mm_loadu_si128(from.add(length - 16).cast());
            _mm_storeu_si128(to.cast(), first);
            _mm_storeu_si128(to.add(length - 16).cast(), last);
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "rest < 64")]
            let mask = _bzhi_u64(u64::MAX, rest as u32);
            let tail = _mm512_maskz_loadu_epi8(mask, from.add(done).cast());
            _mm512_mask_storeu_epi8(to.add(done).cast(), mask, tail);
        }
    }
}

/// Hints that the cache line at `at` will be read soon. Any address is allowed; it is never accessed.
#[inline(always)]
pub(crate) fn prefetch_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Hints that the cache line at `at` will be written soon, so that it comes here alone: a store to a line that
/// another core still has would have to ask for it again.
#[inline(always)]
pub(crate) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // The intrinsic becomes PREFETCHT0 unless the whole program is built for newer CPUs.
    // SAFETY: PREFETCHW does not fault, whatever the address; CPUs that do not know it do nothing.
    unsafe {
        std::arch::asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{FrameCopy, copy_frames};
    use crate::{PageSize, SharedMapping};

    #[test]
    fn a_burst_of_frames_arrives_with_the_heads_that_were_checked() {
        let (memory, _fd) = SharedMapping::create("frames", 1 << 16, PageSize::Base).unwrap();
        let pattern: Vec<u8> = (0..10_000usize).map(|i| u8::try_from(i % 253).unwrap()).collect();
        memory.as_slice().write_from(&pattern);
        for length in [15, 16, 17, 60, 64, 100, 1500, 2064, 2065, 9000] {
            let from = memory.slice(3, length).unwrap();
            let to = memory.slice(0x8001, length).unwrap();
            to.fill(0xEE);
            copy_frames(&[FrameCopy { head: [u64::MAX, 0x0102_0304_0506_0708], from, to }]);
            let mut seen = vec![0; length];
            to.read_into(&mut seen);
            if length < 16 {
                assert!(seen.iter().all(|byte| *byte == 0xEE));
                continue;
            }
            let head = [&[0xFF; 8][..], &[8, 7, 6, 5, 4, 3, 2, 1]].concat();
            assert_eq!(seen, [&head[..], &pattern[19..3 + length]].concat(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn every_length_and_offset_is_copied_exactly(
            length in 0usize..5000, from in 0usize..64, to in 0usize..64
        ) {
            let source: Vec<u8> = (0..from + length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
            let mut target = vec![0xAAu8; to + length + 64];
            // SAFETY: both ranges lie inside their vectors.
            unsafe {
                super::copy_bytes(target.as_mut_ptr().add(to), source.as_ptr().add(from), length);
            }
            prop_assert_eq!(&target[to..to + length], &source[from..]);
            prop_assert!(target[..to].iter().all(|byte| *byte == 0xAA));
            prop_assert!(target[to + length..].iter().all(|byte| *byte == 0xAA));
        }
    }
}
