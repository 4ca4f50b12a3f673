//! What the workers of a process agree on beside the snapshot.

use std::sync::Arc;

use crate::persist::Templates;
use crate::spread::Spread;
use crate::thresholds::Occupancy;

/// A handle on what all workers agree on; clones are handles on the same.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// How NICs spread flows over the workers; `None` when nobody knows.
    pub spread: Option<Arc<Spread>>,
    /// Which client persistence sends where. Touched only when a connection opens or ends.
    pub templates: Arc<Templates>,
    /// Connections of servers with thresholds. Touched only when a connection opens or ends.
    pub occupancy: Arc<Occupancy>,
}

impl Agreed {
    /// Takes all memory: for about `templates_max` templates and server slots below `servers_max`. `secret` keys the
    /// hashes. How NICs spread flows is not known yet.
    pub fn new(templates_max: u32, servers_max: u32, secret: [u64; 2]) -> Self {
        Self {
            spread: None,
            templates: Arc::new(Templates::new(templates_max as usize, secret)),
            occupancy: Arc::new(Occupancy::new(servers_max as usize)),
        }
    }
}
