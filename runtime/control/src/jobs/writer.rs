//! Group commit: one thread owns the connection, takes what has come in meanwhile, and syncs once for all of it.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use sandpiper_domain::{JobError, StoreError};

use super::steps;

/// Commands that may wait for the disk.
const WAITING_MAX: usize = 8192;
/// Commands in one transaction.
const GROUP_MAX: usize = 1024;
/// Where others came together with the last, so many are waited for, and so long: a sync costs more than that.
const GATHER_MIN: usize = 32;
const GATHER: Duration = Duration::from_micros(300);
/// Transactions between two checkpoints at most, and commands in them.
const COMMITS_MAX: u32 = 1_000;
const COMMANDS_MAX: usize = 20_000;
/// The log is checkpointed when nothing has come for so long.
const IDLE: Duration = Duration::from_millis(200);

/// Tells the one who sent a command how it ended; told `Some` where the commit failed.
pub(super) type Reply = Box<dyn FnOnce(Option<&str>) + Send>;
/// One change. What it answers is told after the commit.
pub(super) type Command = Box<dyn FnOnce(&Connection) -> Ran + Send>;

/// A change that was made, or not.
pub(super) struct Ran {
    pub(super) reply: Reply,
    /// Why nothing of the whole transaction may stay: the change broke off in the middle.
    pub(super) spoiled: Option<String>,
}

/// Hears of each commit: how many commands, how long.
pub type CommitObserver = Box<dyn Fn(usize, Duration) + Send>;

/// Starts the thread, which ends when the last sender is gone.
pub(super) fn start(
    connection: Connection,
    observer: CommitObserver,
) -> std::io::Result<SyncSender<Command>> {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let writer =
        Writer { connection, observer, broken: None, are_many: false, commits: 0, commands: 0 };
    std::thread::Builder::new().name("jobs".to_owned()).spawn(move || writer.run(&receiver))?;
    Ok(sender)
}

struct Writer {
    connection: Connection,
    observer: CommitObserver,
    /// Set by a commit that may or may not have reached the disk: read-only until a restart finds out.
    broken: Option<String>,
    /// Whether the last transaction was of more than one command.
    are_many: bool,
    /// Since the last checkpoint.
    commits: u32,
    commands: usize,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Command>) {
        loop {
            match receiver.recv_timeout(IDLE) {
                Ok(first) => {
                    let mut group = vec![first];
                    gather(receiver, &mut group);
                    if self.are_many && group.len() < GATHER_MIN {
                        std::thread::sleep(GATHER);
                        gather(receiver, &mut group);
                    }
                    self.are_many = group.len() > 1;
                    self.commit(group);
                }
                Err(RecvTimeoutError::Timeout) if self.commits > 0 => self.checkpoint(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.checkpoint(),
            }
            if self.commits >= COMMITS_MAX || self.commands >= COMMANDS_MAX {
                self.checkpoint();
            }
        }
    }

    fn commit(&mut self, group: Vec<Command>) {
        let began = Instant::now();
        let count = group.len();
        let begun = match &self.broken {
            Some(error) => Err(error.clone()),
            None => self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| e.to_string()),
        };
        // Without a transaction the commands are dropped, and their senders hear that they are gone.
        let group = if begun.is_ok() { group } else { Vec::new() };
        let mut spoiled = None;
        let run = |command: Command| {
            let ran = command(&self.connection);
            spoiled = spoiled.take().or(ran.spoiled);
            ran.reply
        };
        let replies: Vec<_> = group.into_iter().map(run).collect();
        let committed = begun.and_then(|()| {
            if let Some(error) = spoiled {
                tracing::error!(%error, "changes to the queue of jobs were taken back");
                let _ = self.connection.execute_batch("ROLLBACK");
                return Err(error);
            }
            let committed = self.connection.execute_batch("COMMIT").map_err(|e| e.to_string());
            if let Err(error) = &committed {
                tracing::error!(%error, "the queue of jobs could not be written");
                let _ = self.connection.execute_batch("ROLLBACK");
                self.broken = Some("an earlier write failed; read-only until a restart".to_owned());
            }
            committed
        });
        let error = committed.err();
        for reply in replies {
            reply(error.as_deref());
        }
        self.commits += 1;
        self.commands += count;
        (self.observer)(count, began.elapsed());
    }

    fn checkpoint(&mut self) {
        (self.commits, self.commands) = (0, 0);
        let done = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        if let Err(error) = done {
            tracing::warn!(%error, "the queue's log could not be checkpointed");
        }
    }
}

/// Takes what has come meanwhile.
fn gather(receiver: &Receiver<Command>, group: &mut Vec<Command>) {
    let room = GROUP_MAX - group.len();
    group.extend(receiver.try_iter().take(room));
}

/// Does `work` whole or not at all, whatever becomes of the other commands of its group.
pub(super) fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, JobError>,
) -> Result<T, JobError> {
    let run = |sql| steps::run(connection, sql, []);
    run("SAVEPOINT command")?;
    let outcome = work(connection);
    if outcome.is_err() {
        run("ROLLBACK TO command")?;
    }
    run("RELEASE command")?;
    outcome
}

pub(super) fn stopped() -> JobError {
    StoreError::Failed("the queue takes no writes any more".to_owned()).into()
}
