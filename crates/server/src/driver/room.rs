//! What fits on a node.

use super::NodeFacts;
use super::inside;
use crate::cvm::spec::{Booking, Spec};

/// What machines of these specs occupy.
pub(in crate::driver) fn occupied<'a>(specs: impl Iterator<Item = &'a Spec>) -> Booking {
    specs.map(Spec::booking).fold(Booking::default(), |sum, one| Booking {
        vcpu: sum.vcpu.saturating_add(one.vcpu),
        memory_mb: sum.memory_mb.saturating_add(one.memory_mb),
        disk_gb: sum.disk_gb.saturating_add(one.disk_gb),
        gpus: sum.gpus.saturating_add(one.gpus),
    })
}

/// Can a machine that `has` this spec, if it is there, get this one, beside others that use so much?
///
/// # Errors
/// What is in the way.
pub(in crate::driver) fn fits(
    spec: &Spec,
    has: Option<&Spec>,
    used: Booking,
    facts: &NodeFacts,
) -> Result<(), String> {
    let (all, asked) = (facts.capacity, spec.booking());
    for (what, all, used, asked) in [
        ("vCPUs", all.vcpu, used.vcpu, asked.vcpu),
        ("MB of memory", all.memory_mb, used.memory_mb, asked.memory_mb),
        ("GB of disk", all.disk_gb, used.disk_gb, asked.disk_gb),
        ("GPUs", all.gpus, used.gpus, asked.gpus),
    ] {
        let free = all.saturating_sub(used);
        if asked > free {
            return Err(format!("{asked} {what} do not fit: {free} are free"));
        }
    }
    if let Some(product) = &spec.gpus.product
        && spec.gpus.count > 0
        && facts.gpu_product.as_ref() != Some(product)
    {
        return Err(format!("it has no `{product}` GPUs"));
    }
    if inside::image(spec, facts).is_some_and(|image| image.requires_gpu) && spec.gpus.count == 0 {
        return Err(format!("image `{}` is only for machines with GPUs", spec.image));
    }
    match has {
        Some(has) if has.disk_gb > spec.disk_gb => {
            Err(format!("a disk of {} GB cannot shrink to {} GB", has.disk_gb, spec.disk_gb))
        }
        Some(_) | None => Ok(()),
    }
}
