//! Which instructions the kernels use.

use std::cell::Cell;
use std::sync::OnceLock;

/// A level of vector instructions. Results of [`Precision::F32`](crate::Precision::F32) are the same bits on
/// every level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Also AVX-512 F, BW, DQ and VL.
    Avx512,
    /// Also AMX tiles with bf16: as [`Avx512`](Self::Avx512) but for
    /// [`Precision::Bf16`](crate::Precision::Bf16).
    Amx,
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// The levels that this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx].into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.is_available() && crate::gemm::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Amx => false,
        }
    }

    /// The level in use on this thread: the best one, unless [`with_isa`] chose another. Always available.
    pub fn current() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        FORCED.get().unwrap_or_else(|| {
            *BEST.get_or_init(|| Self::available().last().expect("the portable level is always there"))
        })
    }
}

/// Runs `f` with the kernels that it calls from this thread on level `isa`, for tests and measurements.
///
/// # Panics
/// When this processor lacks `isa`.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    /// Restores the former choice, also when `f` panics.
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    assert!(isa.is_available(), "this processor lacks {isa:?}");
    let _restore = Restore(FORCED.replace(Some(isa)));
    f()
}

/// Defines a function whose body is compiled once per instruction level and chosen at run time. The body is
/// plain Rust in a fixed order of operations, so every level gives the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "the wrapped function's own list")]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the wrapped function's own list")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the wrapped function's own list")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::isa::Isa::current() {
                    // SAFETY: the level was detected on this processor.
                    $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => return unsafe { avx512($($arg),*) },
                    // SAFETY: the level was detected on this processor.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;
