//! Who asks pays, whether the answer is of use or not.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::FutureExt;
use sandpiper_domain::{
    InferenceBill, InferenceCost, InferenceError, InferenceRequest, Model, NamedTensor, Payer,
};

use super::plane::{busy, depth, one_row};
use crate::testing::{adder, f32s, plane, request, slow};

#[derive(Default)]
struct Purse(Mutex<InferenceCost>);

impl Payer for Purse {
    fn pay_late(&self, cost: InferenceCost) {
        *self.0.lock().unwrap() += cost;
    }
}

fn billed(
    inputs: Vec<NamedTensor>,
    deadline: Option<Instant>,
) -> (InferenceRequest, Arc<InferenceBill>, Arc<Purse>) {
    let purse = Arc::new(Purse::default());
    let bill = Arc::new(InferenceBill::new(purse.clone()));
    (InferenceRequest { deadline, bill: Some(bill.clone()), ..request(inputs) }, bill, purse)
}

fn square() -> Vec<NamedTensor> {
    vec![f32s("x", &[512, 512], &vec![0.001; 512 * 512])]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_paid_for_however_it_ends() {
    let plane = plane(1, 8);
    let (model, long) =
        (plane.inspect(adder()).await.unwrap(), plane.inspect(slow(1000)).await.unwrap());
    let nothing = InferenceCost::default();
    // With an answer, just what it says.
    let (call, bill, purse) = billed(one_row(), None);
    let output = model.infer(call).await.unwrap();
    let (queued, computed) = (output.queued, output.computed);
    assert_eq!(bill.close(), InferenceCost { queued, computed });
    // Stopped at its deadline: what had been done by then.
    let soon = Duration::from_millis(50);
    let (call, bill, _) = billed(square(), Some(Instant::now() + soon));
    assert_eq!(long.infer(call).await.unwrap_err(), InferenceError::Timeout);
    assert!(bill.close().computed > soon / 2);
    // Its caller leaves, and then a step of the graph comes to its end.
    let (call, bill, late) = billed(square(), None);
    let mut call = long.infer(call);
    assert!((&mut call).now_or_never().is_none());
    depth(&plane, 0).await;
    drop(call);
    let closed = bill.close();
    drop(bill);
    let patience = Instant::now() + Duration::from_secs(60);
    while closed.computed + late.0.lock().unwrap().computed == Duration::ZERO {
        assert!(Instant::now() < patience, "nobody has paid");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(*purse.0.lock().unwrap(), nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_runs_has_waited_and_computed_nothing() {
    let plane = plane(1, 8);
    let model = plane.inspect(adder()).await.unwrap();
    let busy = busy(&plane).await;
    let (call, bill, _) = billed(one_row(), None);
    let mut call = model.infer(call);
    assert!((&mut call).now_or_never().is_none());
    depth(&plane, 1).await;
    drop(call);
    let cost = bill.close();
    assert!(cost.queued > Duration::ZERO && cost.computed == Duration::ZERO, "{cost:?}");
    let (call, bill, _) = billed(one_row(), Some(Instant::now()));
    assert_eq!(model.infer(call).await.unwrap_err(), InferenceError::Timeout);
    assert_eq!(bill.close(), InferenceCost::default());
    busy.abort();
}
