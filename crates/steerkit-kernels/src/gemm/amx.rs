//! The bf16 kernel on Intel's tile registers (AMX), Linux only.
//!
//! Rust has no stable intrinsics for tiles, so this is inline assembly. A tile is 16 rows of 64 bytes.
//! `tdpbf16ps c, a, b` adds, for each row of `c` by itself, the products of 16 cells of `a` with the 16 rows of
//! `b` in order; so a row's bits do not depend on the rows beside it.

use super::micro::{Mode, Tile};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Columns of a panel: two tiles.
pub(super) const NR: usize = 32;

/// Rows of a tile, and cells in a row of `a`.
const TILE: usize = 16;

/// Whether the processor has the tiles and the kernel lets this process use them; asks for them once.
pub(crate) fn is_available() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| cfg!(target_os = "linux") && processor_has_tiles() && request_tiles())
}

fn processor_has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let needed = AMX_BF16 | AMX_TILE;
    #[allow(unused_unsafe, reason = "newer standard libraries declare it safe")]
    // SAFETY: every processor with AVX-512 has the instruction `cpuid`, and it changes nothing.
    let cpuid = |leaf| unsafe { __cpuid_count(leaf, 0) };
    cpuid(0).eax >= 7 && cpuid(7).edx & needed == needed
}

/// Linux grants the large tile state to a process that asks for it.
fn request_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this system call takes two numbers and touches no memory of ours; `syscall` overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// The shapes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// `c` in tiles 0, 1 (upper rows) and 2, 3 (lower rows), `a` in 4 and 5, `b` in 6 and 7.
    const fn for_rows(rows: usize) -> Self {
        let upper = if rows < TILE { rows } else { TILE } as u8;
        let lower = (rows - upper as usize) as u8;
        // A tile without rows is not allowed, even when it is not used.
        let lower = if lower == 0 { 1 } else { lower };
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let heights = [upper, upper, lower, lower, upper, lower, TILE as u8, TILE as u8];
        let mut i = 0;
        while i < 8 {
            config.row_bytes[i] = 64;
            config.rows[i] = heights[i];
            i += 1;
        }
        config
    }
}

/// Adds `blocks × 16` cells of the chain to `c` (or to 0 where `fresh`).
///
/// # Safety
/// As [`Kernels::run`](super::micro::Kernels::run) for `M` rows and `k = 16 × blocks`, `blocks > 0`; the tiles
/// are available.
unsafe fn multiply<const M: usize>(
    t: &Tile,
    blocks: usize,
    a: *const f32,
    lda: usize,
    b: *const f32,
    fresh: bool,
) {
    let config = const { Config::for_rows(M) };
    let (a_low, c_low) = (a.wrapping_add(TILE * lda), t.c.wrapping_add(TILE * t.ldc));
    // One block of assembly, because the compiler knows nothing of tiles between two.
    macro_rules! run {
        ($zero:literal, $load:literal, $load_a:literal, $dot:literal, $store:literal) => {
            asm!(
                "ldtilecfg [{config}]",
                "test {fresh:e}, {fresh:e}",
                "jz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                $zero,
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {ldc}]",
                "tileloadd tmm1, [{c} + {ldc} + 64]",
                $load,
                "3:",
                "tileloadd tmm6, [{b} + {ldb}]",
                "tileloadd tmm4, [{a} + {lda}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {ldb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                $load_a,
                $dot,
                "add {a}, 64",
                "add {a_low}, 64",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 3b",
                "tilestored [{c} + {ldc}], tmm0",
                "tilestored [{c} + {ldc} + 64], tmm1",
                $store,
                "tilerelease",
                config = in(reg) &raw const config,
                fresh = in(reg) u32::from(fresh),
                a = inout(reg) a => _,
                a_low = inout(reg) a_low => _,
                lda = in(reg) lda * 4,
                b = inout(reg) b => _,
                ldb = in(reg) NR * 4,
                c = in(reg) t.c,
                c_low = in(reg) c_low,
                ldc = in(reg) t.ldc * 4,
                blocks = inout(reg) blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: every tile load and store stays within the rows of the configuration, which the caller vouches
    // for; the lower tiles are used only where `M` has rows for them.
    unsafe {
        if M > TILE {
            run!(
                "tilezero tmm2\n tilezero tmm3",
                "tileloadd tmm2, [{c_low} + {ldc}]\n tileloadd tmm3, [{c_low} + {ldc} + 64]",
                "tileloadd tmm5, [{a_low} + {lda}]",
                "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7",
                "tilestored [{c_low} + {ldc}], tmm2\n tilestored [{c_low} + {ldc} + 64], tmm3"
            );
        } else {
            run!("/* {c_low} */", "", "", "", "");
        }
    }
}

/// The micro-kernel; modes `Start` and `Add` only.
///
/// # Safety
/// As [`Kernels::run`](super::micro::Kernels::run) for `M` rows; the tiles are available.
unsafe fn kernel<const M: usize>(t: &Tile) {
    let mut fresh = match t.mode {
        Mode::Start => true,
        Mode::Add => false,
        Mode::Scale(_) | Mode::AddScaled(_) => unreachable!("cells are for products with weights"),
    };
    let (blocks, rest) = (t.k / TILE, t.k % TILE);
    if blocks > 0 {
        // SAFETY: passed on to the caller.
        unsafe { multiply::<M>(t, blocks, t.a, t.lda, t.b, fresh) };
        fresh = false;
    }
    if rest > 0 || fresh {
        // The last cells, beside zeros.
        let (mut a, mut b) = ([0f32; 2 * TILE * TILE], [0f32; TILE * NR]);
        for i in 0..M {
            // SAFETY: the caller vouches for rows of `k` at `a`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    t.a.add(i * t.lda + blocks * TILE),
                    a[i * TILE..].as_mut_ptr(),
                    rest,
                );
            }
        }
        // SAFETY: the caller vouches for `k × nr` at `b`.
        unsafe { std::ptr::copy_nonoverlapping(t.b.add(blocks * TILE * NR), b.as_mut_ptr(), rest * NR) };
        // SAFETY: the copies are a full block; the rest is passed on to the caller.
        unsafe { multiply::<M>(t, 1, a.as_ptr(), TILE, b.as_ptr(), fresh) };
    }
}

macro_rules! kernels {
    ($($m:literal)*) => { [$(kernel::<$m>),*] };
}

/// The kernel for `i + 1` rows at `i`.
pub(super) const KERNELS: [unsafe fn(&Tile); 32] =
    kernels!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
