//! What a simulated node is like.

use crate::cvm::spec::{Booking, sha256};
use crate::driver::{Image, NodeFacts};

/// What a simulated node is like, and how long things take on it. Times are on the node's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct SimConfig {
    /// What it tells about itself.
    pub facts: NodeFacts,
    /// Milliseconds from power-on to the guest's "done".
    pub boot_ms: u64,
    /// Milliseconds that a guest takes to shut down when asked.
    pub stop_ms: u64,
    /// Milliseconds that a call takes on average; each draws its own.
    pub call_ms: u64,
    /// What the draws follow from.
    pub seed: u64,
}

impl SimConfig {
    /// The `number`th node, `sim-<number>`: an ordinary host without graphics cards.
    pub fn node(number: u32) -> Self {
        let name = format!("sim-{number}");
        Self {
            facts: NodeFacts {
                device_id: hex::encode(sha256(name.as_bytes())),
                name,
                region: "local".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                capacity: Booking { vcpu: 64, memory_mb: 256 * 1024, disk_gb: 8 * 1024, gpus: 0 },
                gpu_product: None,
                images: vec![
                    image("dstack-0.5.5", [0, 5, 5]),
                    Image { is_dev: true, ..image("dstack-dev-0.5.5", [0, 5, 5]) },
                    image("dstack-0.5.4", [0, 5, 4]),
                    Image { requires_gpu: true, ..image("dstack-nvidia-0.5.5", [0, 5, 5]) },
                ],
                own_guests: false,
            },
            boot_ms: 1500,
            stop_ms: 500,
            call_ms: 2,
            seed: u64::from(number),
        }
    }

    /// `count` nodes. Of two and more, the last one has graphics cards.
    pub fn nodes(count: u32) -> Vec<Self> {
        (1..=count)
            .map(|number| {
                let node = Self::node(number);
                if number == count && count > 1 { node.with_gpus() } else { node }
            })
            .collect()
    }

    /// The same node with eight H200 cards.
    #[must_use]
    pub fn with_gpus(mut self) -> Self {
        self.facts.capacity.gpus = 8;
        self.facts.gpu_product = Some("H200".into());
        self
    }
}

fn image(name: &str, version: [u32; 3]) -> Image {
    Image {
        name: name.into(),
        version: version.into(),
        is_dev: false,
        os_image_hash: hex::encode(sha256(name.as_bytes())),
        requires_gpu: false,
    }
}
