//! Matrix products with the frozen weights, and with the low-rank additions beside them.

use super::Decoder;
use crate::Result;
use crate::backend::Backend;
use crate::lora::{Additions, Role};

/// A frozen projection.
pub(super) struct Projection<B: Backend> {
    pub(super) matrix: B::Matrix,
    pub(super) bias: Option<B::Gain>,
    /// A low-rank addition of the model itself.
    pub(super) low_rank: Option<LowRank<B>>,
}

/// The factors of a low-rank addition.
pub(super) struct LowRank<B: Backend> {
    /// `A`, `[r, in]`.
    down: B::Matrix,
    /// `B`, `[out, r]`.
    up: B::Matrix,
}

impl<B: Backend> LowRank<B> {
    pub(super) fn new(backend: &B, factors: &crate::weights::LowRank) -> Result<Self> {
        Ok(Self { down: backend.matrix(&factors.down)?, up: backend.matrix(&factors.up)? })
    }
}

/// Gradients of `A` and `B`.
pub(super) type LowRankGradient = (Vec<f32>, Vec<f32>);

/// What a pass adds to the projections of all blocks; nothing where there is no adapter.
pub(super) struct Adapter<B: Backend>(Vec<Option<LowRank<B>>>);

impl<B: Backend> Adapter<B> {
    pub(super) fn new(backend: &B, additions: Option<&Additions>) -> Result<Self> {
        let all = additions.iter().flat_map(|a| &a.0);
        let upload = |factors: &Option<_>| factors.as_ref().map(|f| LowRank::new(backend, f)).transpose();
        Ok(Self(all.map(upload).collect::<Result<_>>()?))
    }

    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Its part in block `layer`.
    pub(super) fn block(&self, layer: usize) -> &[Option<LowRank<B>>] {
        if self.0.is_empty() { &[] } else { &self.0[4 * layer..4 * layer + 4] }
    }
}

/// The addition to one projection of a block.
fn addition<B: Backend>(adapter: &[Option<LowRank<B>>], role: Role) -> Option<&LowRank<B>> {
    adapter.get(role as usize).and_then(Option::as_ref)
}

impl<B: Backend> Decoder<B> {
    pub(super) fn project(
        &self,
        x: &B::Tensor,
        w: &Projection<B>,
        adapter: &[Option<LowRank<B>>],
        role: Role,
    ) -> Result<B::Tensor> {
        let b = &self.backend;
        let mut y = b.linear(x, &w.matrix)?;
        if let Some(bias) = &w.bias {
            b.add_bias(&mut y, bias)?;
        }
        for LowRank { down, up } in w.low_rank.iter().chain(addition(adapter, role)) {
            b.add(&mut y, &b.linear(&b.linear(x, down)?, up)?)?;
        }
        Ok(y)
    }

    /// What the VJP of an adapted projection needs of its input.
    pub(super) fn kept_input(
        &self,
        x: B::Tensor,
        keep: bool,
        adapter: &[Option<LowRank<B>>],
        role: Role,
    ) -> Option<B::Tensor> {
        (keep && addition(adapter, role).is_some()).then_some(x)
    }

    /// The gradient of the input. Those of the adapter's factors go to `gradients`, in the block's order of roles.
    pub(super) fn project_vjp(
        &self,
        dy: &B::Tensor,
        w: &Projection<B>,
        adapter: &[Option<LowRank<B>>],
        role: Role,
        input: Option<&B::Tensor>,
        gradients: &mut [Option<LowRankGradient>],
    ) -> Result<B::Tensor> {
        let b = &self.backend;
        let mut dx = b.linear_vjp(dy, &w.matrix)?;
        if let Some(LowRank { down, up }) = &w.low_rank {
            b.add(&mut dx, &b.linear_vjp(&b.linear_vjp(dy, up)?, down)?)?;
        }
        if let Some((LowRank { down, up }, x)) = addition(adapter, role).zip(input) {
            let middle = b.linear(x, down)?;
            let dmiddle = b.linear_vjp(dy, up)?;
            gradients[role as usize] =
                Some((b.linear_weight_vjp(&dmiddle, x)?, b.linear_weight_vjp(dy, &middle)?));
            b.add(&mut dx, &b.linear_vjp(&dmiddle, down)?)?;
        }
        Ok(dx)
    }
}
