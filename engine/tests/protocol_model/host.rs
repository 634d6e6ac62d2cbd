//! The two hosts as the kernel and CRIU have them: what is there whatever any
//! engine thinks, and what a death does to it.

use ferry_engine::destination::recovery::ReleaseTrace;

/// One process of the workload at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// It runs.
    Running,
    /// CRIU holds it. When CRIU dies, the kernel lets it run.
    Held,
    /// CRIU holds it and SIGSTOP is queued: when CRIU dies, it stops.
    Pinned,
    /// SIGSTOP took effect: it stands until somebody sends SIGCONT.
    Stopped,
    /// It was killed.
    Removed,
}

/// Whether a CRIU is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criu {
    /// Nothing to hold yet, or let go in order.
    Away,
    /// It holds the tasks.
    Holding,
    /// It was killed, or its engine was and it undid what it held.
    Dead,
}

/// Where the address that moves is, as one host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// On this host's interface.
    Here,
    /// Not here.
    Away,
}

/// The host that the workload comes from. Two processes, so that one may be
/// pinned while the other is not yet.
#[derive(Clone, Debug)]
pub struct SourceHost {
    pub tasks: [Task; 2],
    pub criu: Criu,
    pub address: Address,
    /// Whether any task ran after the images were taken: the images are then history.
    pub ran_since_the_freeze: bool,
}

impl SourceHost {
    pub fn new() -> SourceHost {
        SourceHost {
            tasks: [Task::Running; 2],
            criu: Criu::Away,
            address: Address::Here,
            ran_since_the_freeze: false,
        }
    }

    /// CRIU stops every task and dumps.
    pub fn freeze(&mut self) {
        self.tasks = [Task::Held; 2];
        self.criu = Criu::Holding;
    }

    /// `kill(SIGSTOP)` to one task.
    pub fn pin(&mut self, task: usize) {
        self.tasks[task] = match self.tasks[task] {
            Task::Running | Task::Stopped => Task::Stopped,
            Task::Held | Task::Pinned => Task::Pinned,
            Task::Removed => Task::Removed,
        };
    }

    /// CRIU is no more, or lets go: pins take effect, other tasks run.
    pub fn criu_lets_go(&mut self, then: Criu) {
        if self.criu == Criu::Holding {
            self.criu = then;
        }
        for task in &mut self.tasks {
            match task {
                Task::Held => *task = Task::Running,
                Task::Pinned => *task = Task::Stopped,
                Task::Running | Task::Stopped | Task::Removed => continue,
            }
            self.ran_since_the_freeze |= *task == Task::Running;
        }
    }

    /// `kill(SIGCONT)` to every task.
    pub fn continue_tasks(&mut self) {
        for task in &mut self.tasks {
            if *task == Task::Stopped {
                *task = Task::Running;
                self.ran_since_the_freeze = true;
            }
        }
    }

    /// The tree is killed.
    pub fn remove(&mut self) {
        self.tasks = [Task::Removed; 2];
        self.criu = Criu::Away;
    }

    pub fn any_runs(&self) -> bool {
        self.tasks.contains(&Task::Running)
    }

    pub fn all(&self, what: Task) -> bool {
        self.tasks == [what; 2]
    }

    pub fn is_whole(&self) -> bool {
        !self.tasks.contains(&Task::Removed)
    }
}

/// The copy at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Nothing of it exists.
    Absent,
    /// Complete, before its first instruction. Dies with CRIU, and with the engine.
    Held,
    /// CRIU was told to let it run and will, even if the engine dies.
    LettingGo,
    /// It runs.
    Running,
}

/// The host that the workload goes to.
#[derive(Clone, Debug)]
pub struct DestinationHost {
    pub copy: Copy,
    pub address: Address,
    /// What CRIU's log says of the release.
    pub log: ReleaseTrace,
    /// Whether the copy ever ran.
    pub ran: bool,
}

/// What becomes of a copy whose CRIU dies in the very act of letting it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBreath {
    /// The tasks got away and run.
    Lives,
    /// They die with it.
    Dies,
}

impl DestinationHost {
    pub fn new() -> DestinationHost {
        DestinationHost { copy: Copy::Absent, address: Address::Away, log: ReleaseTrace::Silent, ran: false }
    }

    /// The copy's first instruction.
    pub fn run(&mut self) {
        self.copy = Copy::Running;
        self.ran = true;
    }

    /// CRIU's own progress: it lets go what it was told to.
    pub fn criu_goes_on(&mut self) {
        if self.copy == Copy::LettingGo {
            self.run();
            self.log = ReleaseTrace::Resumed;
        }
    }

    /// CRIU fails at it, and removes the copy.
    pub fn criu_fails(&mut self) {
        if self.copy == Copy::LettingGo {
            self.copy = Copy::Absent;
            self.log = ReleaseTrace::Failed;
        }
    }

    /// CRIU is killed.
    pub fn criu_dies(&mut self, breath: LastBreath) {
        match (self.copy, breath) {
            (Copy::Held, _) | (Copy::LettingGo, LastBreath::Dies) => self.copy = Copy::Absent,
            (Copy::LettingGo, LastBreath::Lives) => self.run(),
            (Copy::Absent | Copy::Running, _) => {}
        }
    }

    /// The engine is killed: CRIU removes what is held, saying so in its log, and
    /// ends what it began.
    pub fn engine_dies(&mut self) {
        if self.copy == Copy::Held {
            self.copy = Copy::Absent;
            self.log = ReleaseTrace::Failed;
        }
    }

    /// Whether an instruction of it may be run.
    pub fn may_run(&self) -> bool {
        matches!(self.copy, Copy::LettingGo | Copy::Running)
    }
}
