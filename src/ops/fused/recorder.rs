//! Work of fixed shapes on a card, recorded once and from then on launched as one.
//!
//! A frame is some two hundred kernels of a few microseconds each, and the host takes about as long to launch one; CUDA launches a graph
//! of them at once. On other devices the work is done as it comes.

use std::borrow::Cow;
#[cfg(feature = "cuda")]
use std::collections::HashMap;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::shared::Shared;
use crate::frame::Lent;

/// What has been recorded, by the name of the work and the shapes of its inputs.
#[derive(Debug, Default)]
pub struct Recorder {
    #[cfg(feature = "cuda")]
    known: HashMap<cuda::Key, cuda::Entry>,
}

impl Recorder {
    /// What `work` makes of `inputs`, read back: the bytes of each of its tensors, which are of f32 or of bytes.
    ///
    /// The inputs are all that changes between two calls of one `name`: whatever else `work` reads must stay where it is for as long as
    /// the recorder is used, and it must not read back from the card. The inputs are of one device, whose stream nobody else uses.
    ///
    /// # Errors
    /// Those of `work`, and the device's.
    pub fn run(
        &mut self,
        name: &'static str,
        inputs: &[&Tensor],
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Cow<'_, [u8]>>> {
        #[cfg(feature = "cuda")]
        if let Some(graph) = self.recorded((name, false), inputs, &work) {
            let read = graph.run(inputs)?;
            return Ok(read.map(Cow::Borrowed).collect());
        }
        #[cfg(not(feature = "cuda"))]
        let _ = name;
        plainly(inputs, work)?.iter().map(bytes).collect()
    }

    /// As [`Recorder::run`], but what is made stays on the card, in places of `shared`: the i-th picture's part of each tensor in the
    /// i-th, one after the other. How long these parts are, in bytes; none when the places are too small for them.
    ///
    /// # Errors
    /// Those of `work`, and the device's.
    pub fn hand_over(
        &mut self,
        name: &'static str,
        inputs: &[&Tensor],
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
        (shared, places): (&Shared, &[Arc<Lent>]),
    ) -> Result<Option<Vec<usize>>> {
        let parts = |made: &[Tensor]| -> Result<Option<Vec<usize>>> {
            let part = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes() / places.len();
            let written = shared.write(made, places)?;
            Ok(written.then(|| made.iter().map(part).collect()))
        };
        #[cfg(feature = "cuda")]
        if let Some(graph) = self.recorded((name, true), inputs, &work) {
            return parts(graph.make(inputs)?);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = name;
        parts(&plainly(inputs, work)?)
    }

    #[cfg(feature = "cuda")]
    fn recorded(
        &mut self,
        name: cuda::Name,
        inputs: &[&Tensor],
        work: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Option<&mut cuda::Graph> {
        let on_cuda = |input: &&Tensor| input.device().is_cuda();
        match inputs.first().is_some_and(on_cuda) {
            true => cuda::recorded(&mut self.known, name, inputs, work),
            false => None,
        }
    }
}

/// The work as it comes.
fn plainly(
    inputs: &[&Tensor],
    work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    work(&inputs)
}

/// What [`Recorder::run`] has read back of a tensor of f32.
pub fn floats(bytes: &[u8]) -> Cow<'_, [f32]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) => Cow::Borrowed(values),
        // Bytes of a vector may begin anywhere.
        Err(_) => {
            let (numbers, _) = bytes.as_chunks::<4>();
            Cow::Owned(numbers.iter().map(|b| f32::from_ne_bytes(*b)).collect())
        }
    }
}

pub(super) fn bytes(tensor: &Tensor) -> Result<Cow<'static, [u8]>> {
    let flat = tensor.flatten_all()?;
    Ok(Cow::Owned(match tensor.dtype() {
        DType::U8 => flat.to_vec1()?,
        DType::F32 => bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
        other => bail!("{other:?} is not read back"),
    }))
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::HashMap;
    use std::mem::MaybeUninit;
    use std::sync::Arc;

    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::sys::{
        self, CUgraphInstantiate_flags, CUgraphNodeType, CUmemorytype, CUstreamCaptureMode,
    };
    use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError};
    use candle_core::{DType, Result, Tensor, bail};

    use crate::ops::fused::pinned::cuda::Pinned;

    /// Shapes of one name at most, each with its buffers: a batch of frames has one, and the rest at a clip's end another.
    const MOST: usize = 8;

    /// What the work is called, and whether its results stay on the card.
    pub(super) type Name = (&'static str, bool);
    pub(super) type Key = (Name, Vec<(Vec<usize>, DType)>);

    #[derive(Debug)]
    pub(super) enum Entry {
        /// Done once, as it comes.
        Seen,
        Recorded(Graph),
        /// It cannot be recorded.
        Refused,
    }

    /// The work as it was recorded, which it is when it is asked for the second time; none where it is to be done as it comes.
    pub(super) fn recorded<'a>(
        known: &'a mut HashMap<Key, Entry>,
        name: Name,
        inputs: &[&Tensor],
        work: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Option<&'a mut Graph> {
        let shapes = inputs
            .iter()
            .map(|input| (input.dims().to_vec(), input.dtype()));
        let key = (name, shapes.collect());
        match known.get(&key) {
            Some(Entry::Recorded(_) | Entry::Refused) => {}
            Some(Entry::Seen) => {
                let entry = match Graph::record(inputs, work, name.1) {
                    Ok(graph) => Entry::Recorded(graph),
                    Err(error) => {
                        let why = error.to_string();
                        let why = why.lines().next().unwrap_or_default();
                        tracing::warn!(
                            "{} cannot be recorded and is launched kernel by kernel: {why}",
                            name.0
                        );
                        Entry::Refused
                    }
                };
                known.insert(key.clone(), entry);
            }
            None => {
                if known.len() >= MOST {
                    known.clear();
                }
                known.insert(key.clone(), Entry::Seen);
            }
        }
        match known.get_mut(&key) {
            Some(Entry::Recorded(graph)) => Some(graph),
            _ => None,
        }
    }

    /// Recorded work with its buffers.
    pub(super) struct Graph {
        graph: CudaGraph,
        stream: Arc<CudaStream>,
        inputs: Vec<Tensor>,
        /// What it copies its results to.
        results: Results,
    }

    enum Results {
        /// To be read by the host.
        Host(Vec<Pinned>),
        /// To be read on the card.
        Card(Vec<Tensor>),
    }

    impl Results {
        /// Room for what was made.
        fn room(made: &[Tensor], on_card: bool) -> Result<Self> {
            let pinned = |t: &Tensor| Pinned::new(t.elem_count() * t.dtype().size_in_bytes());
            Ok(match on_card {
                true => Self::Card(made.iter().map(Tensor::copy).collect::<Result<_>>()?),
                false => Self::Host(made.iter().map(pinned).collect::<Result<_>>()?),
            })
        }

        /// Copies there what was made, when the stream has come so far.
        fn take(&mut self, made: &[Tensor], stream: &Arc<CudaStream>) -> Result<()> {
            match self {
                Self::Host(to) => {
                    let mut pairs = to.iter_mut().zip(made);
                    pairs.try_for_each(|(to, made)| to.read(made, stream))
                }
                Self::Card(to) => {
                    let mut pairs = to.iter().zip(made);
                    pairs.try_for_each(|(to, made)| to.slice_set(made, 0, 0))
                }
            }
        }
    }

    // SAFETY: a graph may be launched by any thread, one at a time, which `&mut self` sees to; cudarc makes the context the thread's
    // own before each use.
    unsafe impl Send for Graph {}
    // SAFETY: nothing of it can be reached through a shared reference.
    unsafe impl Sync for Graph {}

    impl std::fmt::Debug for Graph {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Graph of {} inputs", self.inputs.len())
        }
    }

    impl Graph {
        fn record(
            inputs: &[&Tensor],
            work: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
            on_card: bool,
        ) -> Result<Self> {
            let Some(first) = inputs.first() else {
                bail!("work without inputs");
            };
            let stream = first.device().as_cuda_device()?.cuda_stream();
            let own = |t: &&Tensor| t.contiguous()?.copy();
            let inputs = inputs.iter().map(own).collect::<Result<Vec<_>>>()?;
            // Once without: what is loaded or chosen at first use is then there, on this thread.
            let made = work(&inputs)?;
            let mut results = Results::room(&made, on_card)?;
            drop(made);
            stream.synchronize().w()?;

            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).w()?;
            let recorded = work(&inputs).and_then(|made| results.take(&made, &stream));
            let graph = stream.end_capture(CUgraphInstantiate_flags(0));
            recorded?;
            let Some(graph) = graph.w()? else {
                bail!("CUDA has recorded nothing");
            };
            if reads_host(&graph).w()? {
                bail!("it reads memory of the host");
            }
            // What was left allocated in it would make the second launch fail.
            for _ in 0..2 {
                graph.launch().w()?;
            }
            stream.synchronize().w()?;
            Ok(Self {
                graph,
                stream,
                inputs,
                results,
            })
        }

        /// The results of these inputs, when they are there.
        pub(super) fn run(&mut self, inputs: &[&Tensor]) -> Result<impl Iterator<Item = &[u8]>> {
            self.launch(inputs)?;
            self.stream.synchronize().w()?;
            match &self.results {
                Results::Host(results) => Ok(results.iter().map(Pinned::bytes)),
                Results::Card(_) => bail!("results that stay on the card are not read"),
            }
        }

        /// The results of these inputs on the card, for what comes after on its stream.
        pub(super) fn make(&mut self, inputs: &[&Tensor]) -> Result<&[Tensor]> {
            self.launch(inputs)?;
            match &self.results {
                Results::Card(results) => Ok(results),
                Results::Host(_) => bail!("results that are read do not stay on the card"),
            }
        }

        fn launch(&self, inputs: &[&Tensor]) -> Result<()> {
            for (own, input) in self.inputs.iter().zip(inputs) {
                own.slice_set(&input.contiguous()?, 0, 0)?;
            }
            self.graph.launch().w()
        }
    }

    /// Whether a graph copies from the host's memory: from places that were right when it was recorded.
    fn reads_host(graph: &CudaGraph) -> std::result::Result<bool, DriverError> {
        let graph = graph.cu_graph();
        let mut count = 0;
        // SAFETY: without a place to write to it says how many there are.
        unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut count) }.result()?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        // SAFETY: there is room for as many as it said.
        unsafe { sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count) }.result()?;
        for &node in nodes.iter().take(count) {
            let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            // SAFETY: a node of this graph, and a place for its type.
            unsafe { sys::cuGraphNodeGetType(node, &raw mut kind) }.result()?;
            if kind != CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY {
                continue;
            }
            let mut copy = MaybeUninit::<sys::CUDA_MEMCPY3D>::uninit();
            // SAFETY: a node that copies, and a place for what.
            unsafe { sys::cuGraphMemcpyNodeGetParams(node, copy.as_mut_ptr()) }.result()?;
            // SAFETY: CUDA has written it. A number and not the enum: those of other fields may be none of theirs.
            let from = unsafe {
                (&raw const (*copy.as_ptr()).srcMemoryType)
                    .cast::<u32>()
                    .read()
            };
            if from != CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
