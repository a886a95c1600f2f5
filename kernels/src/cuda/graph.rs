//! A recording that the driver keeps: one call queues all of its launches.

use super::driver::{Driver, refused};
use super::{Error, Graph};
use cudarc::driver::{result, sys};

/// A CUDA graph, ready to run.
pub(super) struct DriverGraph<'a> {
    driver: &'a Driver,
    graph: sys::CUgraph,
    ready: sys::CUgraphExec,
    /// What the recorded launches touch.
    spans: Vec<(u64, usize)>,
}

impl<'a> DriverGraph<'a> {
    /// Makes `graph` ready. The context is current.
    pub(super) fn new(
        driver: &'a Driver,
        graph: sys::CUgraph,
        spans: Vec<(u64, usize)>,
    ) -> Result<DriverGraph<'a>, Error> {
        // SAFETY: the capture that has just ended gave this graph.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        match ready {
            Ok(ready) => Ok(DriverGraph { driver, graph, ready, spans }),
            Err(error) => {
                // SAFETY: as above; nothing else has it.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(refused("graph")(error))
            }
        }
    }
}

impl Graph for DriverGraph<'_> {
    fn launch(&self) -> Result<(), Error> {
        self.driver.check("graph", &self.spans)?;
        self.driver.enter()?;
        // SAFETY: the graph is alive as long as `self`, the stream as long as the driver.
        unsafe { result::graph::launch(self.ready, self.driver.stream()) }
            .map_err(refused("graph launch"))
    }
}

impl Drop for DriverGraph<'_> {
    fn drop(&mut self) {
        // The driver keeps what is running until it is done. A failure cannot be mended here.
        if self.driver.enter().is_ok() {
            // SAFETY: both were made by `new` and are given back once.
            unsafe {
                let _ = result::graph::exec_destroy(self.ready);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
