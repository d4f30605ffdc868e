//! `wasi:nn@0.2.0-rc-2024-10-28`: graphs are found by name through the [`ModelSource`] port, and `compute` waits for
//! the inference plane without holding a thread.
//!
//! 1. A tensor is checked where it is made. The constructor cannot fail, so one that does not add up stays invalid, and
//!    `compute` says why; one beyond the sandbox's budget of tensor bytes traps.
//! 2. `compute` consumes its inputs, fits them to the model's types, and queues the call with the request's deadline.
//! 3. Outputs become tensors of the sandbox, under the same budget. What the interface has no type for is widened.

// The generated interfaces re-export the resources' types, so these must be `pub` though no one outside sees them.
#![allow(unreachable_pub)]

use std::{future::poll_fn, sync::Arc, time::Instant};

use bytes::Bytes;
use sandpiper_domain::{
    Activity, BoxFuture, BriefRuns, DataType, Deferred, InferenceBill, InferenceError,
    InferenceRequest, Model, ModelScope, ModelSource, NamedTensor, Payer, RANK_MAX, Share, Tensor,
    TensorError, Usage,
};
use wasmtime::{
    Result,
    component::{HasData, Resource, ResourceTable},
};

use super::nn_types;
use crate::limits::Limiter;

pub(crate) use bindings::Ml;
use bindings::wasi::nn::{
    errors::{self, ErrorCode},
    graph, inference, tensor,
};

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../guest-sdk/wit",
        world: "ml",
        imports: {
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            "wasi:nn/graph.load-by-name": async | trappable,
            default: trappable,
        },
        with: {
            "wasi:nn/tensor.tensor": super::HostTensor,
            "wasi:nn/graph.graph": super::HostGraph,
            "wasi:nn/inference.graph-execution-context": super::HostContext,
            "wasi:nn/errors.error": super::HostError,
        },
    });
}
pub(crate) use bindings::wasi::nn::tensor::TensorType;

/// The resource behind `tensor`.
pub struct HostTensor {
    dimensions: Vec<u32>,
    ty: TensorType,
    data: Bytes,
    checked: std::result::Result<Tensor, TensorError>,
}

impl HostTensor {
    /// What it holds in the host. A tensor of too many dimensions stays invalid, but its dimensions are kept.
    fn bytes(&self) -> usize {
        self.data.len() + self.dimensions.len() * size_of::<u32>()
    }
}

/// The resource behind `graph`.
pub struct HostGraph(Arc<dyn Model>);

/// The resource behind `graph-execution-context`.
pub struct HostContext(Arc<dyn Model>);

/// The resource behind `error`.
pub struct HostError {
    code: ErrorCode,
    text: String,
}

impl From<InferenceError> for HostError {
    fn from(error: InferenceError) -> Self {
        let code = match &error {
            InferenceError::InvalidArgument(_) => ErrorCode::InvalidArgument,
            InferenceError::NotFound => ErrorCode::NotFound,
            InferenceError::Unsupported(_) => ErrorCode::UnsupportedOperation,
            InferenceError::TooLarge(_) => ErrorCode::TooLarge,
            InferenceError::Timeout => ErrorCode::Timeout,
            // The interface has no code of its own for a full queue; guests that retry look for this one.
            InferenceError::Saturated
            | InferenceError::TenantSaturated
            | InferenceError::Unmeetable { .. }
            | InferenceError::Unavailable(_) => ErrorCode::Timeout,
            InferenceError::Runtime(_) => ErrorCode::RuntimeError,
        };
        HostError { code, text: error.to_string() }
    }
}

/// The part of a store's data that this interface works on.
pub(crate) struct NnView<'a> {
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) limiter: &'a mut Limiter,
    pub(crate) usage: &'a mut Usage,
    pub(crate) scope: &'a Arc<ModelScope>,
    pub(crate) share: Share,
    pub(crate) activity: &'a Arc<dyn Activity>,
    pub(crate) brief: &'a Arc<Deferred>,
    /// There once a model was asked.
    pub(crate) bill: &'a mut Option<Arc<InferenceBill>>,
    pub(crate) payer: &'a Arc<dyn Payer>,
    pub(crate) models: &'a Arc<dyn ModelSource>,
    pub(crate) deadline: Instant,
}

/// Names [`NnView`] as the data of the generated interfaces.
pub(crate) struct Nn;

impl HasData for Nn {
    type Data<'a> = NnView<'a>;
}

type Answer<T> = Result<std::result::Result<T, Resource<HostError>>>;

impl NnView<'_> {
    fn refuse<T>(&mut self, error: InferenceError) -> Answer<T> {
        Ok(Err(self.table.push(HostError::from(error))?))
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        if self.limiter.take_tensor_bytes(bytes) {
            return Ok(());
        }
        Err(wasmtime::Error::msg("the sandbox holds more tensor bytes than its limit"))
    }

    /// Takes the inputs out of the table, all of them, so that a call that fails consumes them too.
    fn take_inputs(
        &mut self,
        inputs: Vec<(String, Resource<HostTensor>)>,
        model: &dyn Model,
    ) -> Result<std::result::Result<Vec<NamedTensor>, InferenceError>> {
        let mut taken = Ok(Vec::with_capacity(inputs.len()));
        for (name, resource) in inputs {
            let tensor = self.table.delete(resource)?;
            self.limiter.give_tensor_bytes(tensor.bytes());
            let Ok(all) = &mut taken else { continue };
            let fitted = tensor
                .checked
                .map_err(|error| InferenceError::InvalidArgument(error.to_string()))
                .and_then(|tensor| nn_types::fit_input(tensor, &name, model.signature()));
            match fitted {
                Ok(tensor) => all.push(NamedTensor { name, tensor }),
                Err(error) => taken = Err(error),
            }
        }
        Ok(taken)
    }

    fn give_outputs(
        &mut self,
        outputs: Vec<NamedTensor>,
    ) -> Answer<Vec<(String, Resource<HostTensor>)>> {
        let mut widened = Vec::with_capacity(outputs.len());
        for NamedTensor { name, tensor } in outputs {
            match nn_types::widen_output(tensor) {
                Ok((ty, tensor)) => widened.push((name, ty, tensor)),
                Err(error) => return self.refuse(error),
            }
        }
        let mut given = Vec::with_capacity(widened.len());
        for (name, ty, tensor) in widened {
            let dimensions = tensor.shape().iter().map(|dim| *dim as u32).collect();
            let data = tensor.data().clone();
            given
                .push((name, self.push(HostTensor { dimensions, ty, data, checked: Ok(tensor) })?));
        }
        Ok(Ok(given))
    }

    fn push(&mut self, tensor: HostTensor) -> Result<Resource<HostTensor>> {
        self.charge(tensor.bytes())?;
        Ok(self.table.push(tensor)?)
    }
}

impl errors::Host for NnView<'_> {}

impl errors::HostError for NnView<'_> {
    fn code(&mut self, error: Resource<HostError>) -> Result<ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<HostError>) -> Result<String> {
        Ok(self.table.get(&error)?.text.clone())
    }

    fn drop(&mut self, error: Resource<HostError>) -> Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl tensor::Host for NnView<'_> {}

impl tensor::HostTensor for NnView<'_> {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: TensorType,
        data: Vec<u8>,
    ) -> Result<Resource<HostTensor>> {
        let data = Bytes::from(data);
        let checked = match dimensions.len() {
            rank if rank > RANK_MAX => Err(TensorError::Rank(rank)),
            _ => {
                let shape: Vec<u64> = dimensions.iter().map(|dim| u64::from(*dim)).collect();
                Tensor::new(nn_types::datatype(ty), &shape, data.clone())
            }
        };
        self.push(HostTensor { dimensions, ty, data, checked })
    }

    fn dimensions(&mut self, tensor: Resource<HostTensor>) -> Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<HostTensor>) -> Result<TensorType> {
        Ok(self.table.get(&tensor)?.ty)
    }

    fn data(&mut self, tensor: Resource<HostTensor>) -> Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.data.to_vec())
    }

    fn drop(&mut self, tensor: Resource<HostTensor>) -> Result<()> {
        let tensor = self.table.delete(tensor)?;
        self.limiter.give_tensor_bytes(tensor.bytes());
        Ok(())
    }
}

impl graph::Host for NnView<'_> {
    fn load(
        &mut self,
        _builder: Vec<Vec<u8>>,
        _encoding: graph::GraphEncoding,
        _target: graph::ExecutionTarget,
    ) -> Answer<Resource<HostGraph>> {
        self.refuse(InferenceError::Unsupported(
            "a function cannot bring a model of its own; upload it and use load-by-name".to_owned(),
        ))
    }

    async fn load_by_name(&mut self, name: String) -> Answer<Resource<HostGraph>> {
        match self.models.open(self.scope, &name).await {
            Ok(model) => Ok(Ok(self.table.push(HostGraph(model))?)),
            Err(error) => self.refuse(error),
        }
    }
}

impl graph::HostGraph for NnView<'_> {
    fn init_execution_context(
        &mut self,
        graph: Resource<HostGraph>,
    ) -> Answer<Resource<HostContext>> {
        let model = self.table.get(&graph)?.0.clone();
        Ok(Ok(self.table.push(HostContext(model))?))
    }

    fn drop(&mut self, graph: Resource<HostGraph>) -> Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for NnView<'_> {}

impl inference::HostGraphExecutionContext for NnView<'_> {
    async fn compute(
        &mut self,
        context: Resource<HostContext>,
        inputs: Vec<(String, Resource<HostTensor>)>,
    ) -> Answer<Vec<(String, Resource<HostTensor>)>> {
        let model = self.table.get(&context)?.0.clone();
        let inputs = match self.take_inputs(inputs, &*model)? {
            Ok(inputs) => inputs,
            Err(error) => return self.refuse(error),
        };
        let open = || Arc::new(InferenceBill::new(self.payer.clone()));
        let bill = self.bill.get_or_insert_with(open).clone();
        let request = InferenceRequest {
            tenant: self.scope.tenant.clone(),
            share: self.share,
            deadline: Some(self.deadline),
            inputs,
            batch_with_others: true,
            // This runs on the guest's fiber, whose stack is small.
            brief: BriefRuns::Later(self.brief.clone()),
            bill: Some(bill),
        };
        match wait_for(&**self.activity, self.brief, model.infer(request)).await {
            Ok(output) => {
                self.usage.inferences = self.usage.inferences.saturating_add(1);
                self.give_outputs(output.outputs)
            }
            Err(error) => self.refuse(error),
        }
    }

    fn drop(&mut self, context: Resource<HostContext>) -> Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

/// Waits for a model. The guest gives up its place among those that run meanwhile, unless the answer is there at once
/// or is computed next on this very thread: the processor is as busy with a brief call as with the guest.
async fn wait_for<T>(
    activity: &dyn Activity,
    brief: &Deferred,
    mut call: BoxFuture<'static, T>,
) -> T {
    let mut is_suspended = false;
    let answer = poll_fn(|context| {
        let answer = call.as_mut().poll(context);
        if answer.is_pending() && !is_suspended && brief.is_vacant() {
            is_suspended = true;
            activity.suspend();
        }
        answer
    })
    .await;
    if is_suspended && !activity.try_resume() {
        activity.resume().await;
    }
    answer
}

/// Kept beside the types it maps, so that a new type cannot be forgotten.
pub(crate) fn wit_type(datatype: DataType) -> Option<TensorType> {
    Some(match datatype {
        DataType::F16 => TensorType::Fp16,
        DataType::BF16 => TensorType::Bf16,
        DataType::F32 => TensorType::Fp32,
        DataType::F64 => TensorType::Fp64,
        DataType::U8 => TensorType::U8,
        DataType::I32 => TensorType::I32,
        DataType::I64 => TensorType::I64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        task::Poll,
    };

    use super::*;

    #[derive(Default)]
    struct Counting {
        suspended: AtomicU32,
        resumed: AtomicU32,
    }

    impl Activity for Counting {
        fn suspend(&self) {
            self.suspended.fetch_add(1, Relaxed);
        }

        fn try_resume(&self) -> bool {
            self.resumed.fetch_add(1, Relaxed);
            true
        }

        fn resume(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    /// A call that is answered when it is polled again; `is_brief` leaves its work where the guest is polled.
    async fn counts_of_a_call(is_brief: bool) -> (u32, u32) {
        let (activity, brief) = (Counting::default(), Arc::<Deferred>::default());
        let place = brief.clone();
        let mut was_polled = false;
        let call = poll_fn(move |context| {
            if std::mem::replace(&mut was_polled, true) {
                return Poll::Ready(7);
            }
            if is_brief {
                place.put(|| {});
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        assert_eq!(wait_for(&activity, &brief, Box::pin(call)).await, 7);
        (activity.suspended.into_inner(), activity.resumed.into_inner())
    }

    #[tokio::test]
    async fn a_guest_is_suspended_unless_its_call_runs_next_on_its_thread() {
        assert_eq!(counts_of_a_call(false).await, (1, 1));
        assert_eq!(counts_of_a_call(true).await, (0, 0));
    }
}
