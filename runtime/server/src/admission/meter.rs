//! What an invocation is billed for, and what is known of those before it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sandpiper_control::{Amounts, Counted, Ledger, Owner, Tally};
use sandpiper_domain::{
    Budget, Fault, FunctionName, InferenceBill, InferenceCost, InferenceError, InferenceOutput,
    Lane, Payer, Usage,
};
use sandpiper_sandbox::Outcome;
use time::OffsetDateTime;

use super::{Cause, Refusal, TenantAdmission};

/// Whose bill it is.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) owner: Owner,
    pub(crate) ledger: Arc<Ledger>,
}

impl Account {
    /// Fails when the month's budget is used up.
    pub(super) fn check(&self, of_tier: Budget) -> Result<(), Refusal> {
        if !self.ledger.is_limited(&of_tier) {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        self.ledger.check(of_tier, now).map_err(|spent| {
            let wait = Duration::try_from(spent.renewed_at - now).unwrap_or_default();
            Refusal { cause: Cause::Budget(spent.limit), retry_after: wait }
        })
    }

    /// Bills an inference that came without a function.
    fn inferred(&self, cost: InferenceCost, has_failed: bool) {
        let mut amounts = of_inference(cost);
        amounts[Counted::Requests] = 1;
        amounts[Counted::Faults] = has_failed.into();
        self.ledger.add("", amounts, OffsetDateTime::now_utc());
    }
}

fn of_inference(cost: InferenceCost) -> Amounts {
    let mut amounts = Amounts::default();
    amounts[Counted::InferenceUs] = micros(cost.computed);
    amounts[Counted::InferenceQueuedUs] = micros(cost.queued);
    amounts
}

/// An inference without a function. It is billed once: when it has ended, or when its caller goes away.
pub(crate) struct Inference {
    tenant: Arc<TenantAdmission>,
    bill: Arc<InferenceBill>,
    is_over: bool,
}

impl Inference {
    /// From when the model is asked.
    pub(crate) fn begin(tenant: Arc<TenantAdmission>) -> Self {
        let bill = Arc::new(InferenceBill::new(tenant.clone()));
        Inference { tenant, bill, is_over: false }
    }

    /// Where its cost is added.
    pub(crate) fn bill(&self) -> Arc<InferenceBill> {
        self.bill.clone()
    }

    /// Bills one that has ended, and says what it cost. One that was turned away before anything was computed is not
    /// billed.
    pub(crate) fn end(mut self, answer: &Result<InferenceOutput, InferenceError>) -> InferenceCost {
        self.is_over = true;
        let cost = self.bill.close();
        let has_failed =
            matches!(answer, Err(InferenceError::Runtime(_) | InferenceError::Timeout));
        if answer.is_ok() || has_failed || !cost.computed.is_zero() {
            self.tenant.account.inferred(cost, has_failed);
        }
        cost
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        if !self.is_over {
            self.tenant.account.inferred(self.bill.close(), false);
        }
    }
}

impl Payer for TenantAdmission {
    fn pay_late(&self, cost: InferenceCost) {
        self.account.ledger.add("", of_inference(cost), OffsetDateTime::now_utc());
    }
}

/// Where a function's invocations are billed.
pub(crate) struct Meter {
    ledger: Arc<Ledger>,
    tally: Arc<Tally>,
}

impl Meter {
    pub(crate) fn new(account: &Account, function: &FunctionName) -> Self {
        let tally = account.ledger.tally(function.as_str());
        Meter { ledger: account.ledger.clone(), tally }
    }

    fn add(&self, amounts: &Amounts) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.ledger.add_to(&self.tally, amounts, now.as_secs() as i64);
    }

    /// Bills a start, whatever came of it. The request whose sandbox it becomes is billed for its own work alone.
    pub(crate) fn started(&self, usage: &Usage) {
        let mut amounts = Amounts::default();
        amounts[Counted::StartCpuUs] = micros(usage.cpu);
        amounts[Counted::MemoryMibMs] = mib_ms(usage.memory_bytes_max, usage.lifetime);
        amounts[Counted::InferenceUs] = micros(usage.inference);
        amounts[Counted::InferenceQueuedUs] = micros(usage.inference_queued);
        self.add(&amounts);
    }

    /// Bills the memory of sandboxes that were kept ready.
    pub(crate) fn kept(&self, held: &mut Held) {
        let mut amounts = Amounts::default();
        amounts[Counted::MemoryMibMs] = held.take();
        if !amounts.is_zero() {
            self.add(&amounts);
        }
    }

    /// Bills one that has ended, however. One for which the node had no sandbox is not billed, and neither is one whose
    /// caller went away before there was any.
    pub(crate) fn invoked(&self, outcome: Outcome, usage: &Usage, lane: Lane) {
        if outcome == Outcome::Faulted(Fault::Saturated) || usage.lifetime.is_zero() {
            return;
        }
        let (queued, computed) = (usage.inference_queued, usage.inference);
        let mut amounts = of_inference(InferenceCost { queued, computed });
        amounts[Counted::Requests] = 1;
        amounts[Counted::Faults] = matches!(outcome, Outcome::Faulted(_)).into();
        amounts[Counted::GuestCpuUs] = micros(usage.cpu);
        amounts[Counted::MemoryMibMs] = mib_ms(usage.memory_bytes_max, usage.lifetime);
        amounts[Counted::Jobs] = (lane != Lane::Interactive).into();
        self.add(&amounts);
    }
}

/// Memory that is held over a time.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: u64,
    byte_ns: u128,
}

impl Held {
    /// So much time has passed with what is held.
    pub(crate) fn advance(&mut self, span: Duration) {
        let product = u128::from(self.bytes).saturating_mul(span.as_nanos());
        self.byte_ns = self.byte_ns.saturating_add(product);
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(crate) fn remove(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The whole MiB-milliseconds so far; the rest is kept for the next time.
    fn take(&mut self) -> u64 {
        let whole = self.byte_ns / MIB_MS;
        self.byte_ns %= MIB_MS;
        u64::try_from(whole).unwrap_or(u64::MAX)
    }
}

impl Payer for Meter {
    fn pay_late(&self, cost: InferenceCost) {
        self.add(&of_inference(cost));
    }
}

/// Counts the bytes of a body, and bills them when it is gone.
pub(crate) struct Transferred {
    meter: Arc<Meter>,
    what: Counted,
    bytes: u64,
}

impl Transferred {
    pub(crate) fn new(meter: Arc<Meter>, what: Counted) -> Self {
        Transferred { meter, what, bytes: 0 }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Transferred {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut amounts = Amounts::default();
            amounts[self.what] = self.bytes;
            self.meter.add(&amounts);
        }
    }
}

/// What a version's invocations usually do.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    /// The mean of the inferences of each, in 256ths; newer ones weigh more.
    inferences: AtomicU32,
}

const PARTS: u32 = 256;
/// An invocation that makes more than this many inferences makes no difference any more.
const INFERENCES_MAX: u32 = 1 << 16;

impl Habits {
    /// Learns from an invocation that ended well. Two that end at once may lose one lesson.
    pub(crate) fn learn(&self, usage: &Usage) {
        let mean = self.inferences.load(Relaxed);
        let seen = usage.inferences.min(INFERENCES_MAX) * PARTS;
        if mean != seen {
            self.inferences.store(mean - mean.div_ceil(8).min(mean) + seen / 8, Relaxed);
        }
    }

    /// Whether most invocations ask a model.
    pub(crate) fn asks_models(&self) -> bool {
        self.inferences.load(Relaxed) >= PARTS / 2
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A MiB-millisecond, in byte-nanoseconds.
const MIB_MS: u128 = (1 << 20) * 1_000_000;

/// Rounded up, so that nothing that ran is free.
fn mib_ms(bytes: u64, time: Duration) -> u64 {
    let product = u128::from(bytes).saturating_mul(time.as_nanos());
    u64::try_from(product.div_ceil(MIB_MS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn habits_follow_what_was_seen() {
        let habits = Habits::default();
        assert!(!habits.asks_models());
        for _ in 0..16 {
            habits.learn(&Usage { inferences: 1, ..Usage::default() });
        }
        assert!(habits.asks_models());
        for _ in 0..16 {
            habits.learn(&Usage::default());
        }
        assert!(!habits.asks_models());
        habits.learn(&Usage { inferences: u32::MAX, ..Usage::default() });
        assert!(habits.asks_models());
    }

    #[test]
    fn what_is_kept_is_billed_to_the_last_part() {
        let mut held = Held::default();
        held.add(3 << 19);
        held.advance(Duration::from_millis(1));
        assert_eq!(held.take(), 1);
        held.advance(Duration::from_millis(1));
        assert_eq!(held.take(), 2);
        held.remove(3 << 19);
        held.advance(Duration::MAX);
        assert_eq!(held.take(), 0);
    }

    #[test]
    fn memory_is_billed_by_its_time() {
        assert_eq!(mib_ms(64 << 20, Duration::from_millis(250)), 16_000);
        assert_eq!(mib_ms(1, Duration::from_nanos(1)), 1);
        assert_eq!(mib_ms(u64::MAX, Duration::MAX), u64::MAX);
    }
}
