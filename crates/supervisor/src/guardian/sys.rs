//! The system calls that need `unsafe`, each behind a safe function. Nothing else in the guardian has any.
#![allow(unsafe_code, reason = "mmap, fork and signal dispositions have no safe wrapper")]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::page::WORDS;

const PAGE_BYTES: usize = WORDS * size_of::<AtomicU64>();

/// A shared mapping of the page, as atomic words.
#[derive(Debug)]
pub(super) struct Mapping {
    words: ptr::NonNull<[AtomicU64; WORDS]>,
}

// SAFETY: the mapping is plain memory that lives until the drop, and is only reached through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above: `word` hands out shared references to atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first [`PAGE_BYTES`] of `memfd`, which must be at least that large.
    pub(super) fn shared(memfd: &OwnedFd) -> io::Result<Self> {
        let enough = usize::try_from(fstat(memfd)?.st_size).is_ok_and(|size| size >= PAGE_BYTES);
        if !enough {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                memfd,
                0,
            )?
        };
        let words = ptr::NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { words })
    }

    /// Returns word `index`; an index past the end is the last word, which nobody uses.
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the mapping is page aligned, as large as the array, and unmapped only by the drop.
        let words = unsafe { self.words.as_ref() };
        words.get(index).unwrap_or(&words[WORDS - 1])
    }

    /// Keeps the page in memory.
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        Ok(unsafe { mlock(self.words.as_ptr().cast(), PAGE_BYTES) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no reference to it outlives `self`.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "the range was mapped");
    }
}

/// Makes the memfd of a page. Nobody can shrink or grow it: an access cannot fault.
pub(super) fn create_page() -> io::Result<OwnedFd> {
    let memfd = memfd_create("rhone-guardian", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memfd, PAGE_BYTES as u64)?;
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memfd)
}

/// Keeps the 64 KiB of stack below the caller in memory: more than the fence path uses.
#[allow(clippy::large_stack_arrays, reason = "the stack is what is to be locked")]
pub(super) fn lock_stack() -> io::Result<()> {
    let mut room = [0_u8; 64 * 1024];
    std::hint::black_box(&mut room);
    // SAFETY: the range is `room`, on this thread's stack, which is never unmapped.
    Ok(unsafe { mlock(room.as_mut_ptr().cast(), room.len()) }?)
}

/// Which side of a fork this is.
pub(super) enum Forked {
    Parent(Pid),
    Child,
}

/// Forks. For a process of one thread only: in another the child could not even allocate.
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: the caller's process has one thread, so no lock is held by a thread that is not copied.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
    }
}

/// Closes every descriptor above standard error that this process inherited.
pub(super) fn close_inherited() {
    // SAFETY: called first thing in `main`, when nothing in this process owns a descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Ignores what could end a guardian, and returns a descriptor that reports SIGCHLD and SIGTERM.
pub(super) fn take_signals() -> io::Result<OwnedFd> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the set is initialised by sigemptyset before its use, and lives through the calls.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made, and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of the signal that asks a guardian to end.
pub(super) const TERMINATE: i32 = libc::SIGTERM;

/// Reads one report from the descriptor of [`take_signals`]: the signal's number.
pub(super) fn next_signal(signals: &OwnedFd) -> Option<i32> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    let read = rustix::io::read(signals, &mut info).ok()?;
    let (number, _) = info.get(..read)?.split_first_chunk::<4>()?;
    i32::try_from(u32::from_ne_bytes(*number)).ok()
}

/// Asks for a real-time priority that children do not inherit.
pub(super) fn real_time() -> io::Result<()> {
    // The kernel's `sched_param` is this one number. Not the C library's function: musl's only says ENOSYS.
    let priority: libc::c_int = 50;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `priority` lives through the call, which concerns this process only.
    let set = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets after how many seconds without a word a watchdog resets the machine. A driver may round up.
pub(super) fn set_watchdog(device: &OwnedFd, seconds: u32) -> io::Result<()> {
    // WDIOC_SETTIMEOUT, linux/watchdog.h: _IOWR('W', 6, int).
    const SET_TIMEOUT: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<libc::c_int>(b'W', 6);
    let mut seconds = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the driver reads and writes that one int.
    let call = unsafe { rustix::ioctl::Updater::<SET_TIMEOUT, libc::c_int>::new(&mut seconds) };
    // SAFETY: as above; a file of another kind refuses the number.
    Ok(unsafe { rustix::ioctl::ioctl(device, call) }?)
}

/// Moves the calling thread into a network of its own.
#[cfg(test)]
pub(super) fn own_network() -> io::Result<()> {
    // SAFETY: it concerns this thread's new sockets only, and no descriptor.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// All that a child needs to become a postmaster; made before the fork, so that it allocates nothing.
#[derive(Debug)]
pub(super) struct SpawnPlan {
    pub(super) program: CString,
    pub(super) args: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) cwd: CString,
    pub(super) log_file: CString,
    pub(super) user: Option<(u32, u32, Vec<u32>)>,
    /// What the guardian's own had been before it protected itself.
    pub(super) oom_score_adj: CString,
    pub(super) nice: i32,
}

/// Forks a child that executes `plan`, in the cgroup whose `cgroup.procs` is given.
///
/// A failure after the fork is written to `errors` as five bytes: the step, and the error number. It is
/// closed by a successful exec.
pub(super) fn spawn(plan: &SpawnPlan, cgroup: Option<BorrowedFd<'_>>, errors: &OwnedFd) -> io::Result<Pid> {
    let argv: Vec<*const c_char> = std::iter::once(&plan.program)
        .chain(&plan.args)
        .map(|arg| arg.as_ptr())
        .chain([ptr::null()])
        .collect();
    let envp: Vec<*const c_char> = plan.env.iter().map(|v| v.as_ptr()).chain([ptr::null()]).collect();
    let guardian = rustix::process::getpid();
    match fork()? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => {
            let (stage, errno) = become_postmaster(plan, cgroup, guardian, (&argv, &envp));
            let [a, b, c, d] = errno.to_ne_bytes();
            // Nobody to tell if this fails: the guardian sees the pipe close and the child end.
            let _ = rustix::io::write(errors, &[stage, a, b, c, d]);
            // SAFETY: ends this process without running anything of the guardian's.
            unsafe { libc::_exit(127) }
        }
    }
}

type Vectors<'a> = (&'a [*const c_char], &'a [*const c_char]);

/// Runs in the child. Returns only on failure: the step's number (see `StartStage`) and the error number.
fn become_postmaster(
    plan: &SpawnPlan,
    cgroup: Option<BorrowedFd<'_>>,
    guardian: Pid,
    (argv, envp): Vectors<'_>,
) -> (u8, i32) {
    if let Some(procs) = cgroup
        && let Err(error) = rustix::io::write(procs, b"0")
    {
        return (1, error.raw_os_error());
    }
    undo_protection(plan);
    if let Some((uid, gid, groups)) = &plan.user
        && let Err(errno) = change_user(*uid, *gid, groups)
    {
        return (2, errno);
    }
    // After the change of user, which clears it; and the guardian may have died before it was set.
    // SAFETY: plain system calls on this process.
    let bound = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0;
    if !bound || rustix::process::getppid() != Some(guardian) {
        return (3, libc::ESRCH);
    }
    // SAFETY: the strings end with a zero byte and live until the exec; the calls concern this process.
    unsafe {
        libc::setsid();
        libc::umask(0o077);
        reset_signals();
        if libc::chdir(plan.cwd.as_ptr()) != 0 {
            return (4, errno());
        }
        if let Err(errno) = redirect(&plan.log_file) {
            return (5, errno);
        }
        libc::execve(plan.program.as_ptr(), argv.as_ptr(), envp.as_ptr());
    }
    (6, errno())
}

/// linux/capability.h.
const CAP_NET_ADMIN: libc::c_ulong = 12;

/// Gives back the priority, the protection from the OOM killer and the right that a child inherits.
fn undo_protection(plan: &SpawnPlan) {
    // SAFETY: the strings end with a zero byte; the descriptor is closed by the exec.
    unsafe {
        let path = c"/proc/self/oom_score_adj";
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            let value = plan.oom_score_adj.as_bytes();
            libc::write(fd, value.as_ptr().cast(), value.len());
        }
        libc::setpriority(libc::PRIO_PROCESS, 0, plan.nice);
        // CAP_NET_ADMIN is the dead-man's: no program that Postgres runs is to change a packet filter.
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_LOWER, CAP_NET_ADMIN, 0, 0);
    }
}

fn change_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), i32> {
    // SAFETY: `groups` is a valid slice of group numbers; the calls concern this process, of one thread.
    unsafe {
        if libc::geteuid() == uid && uid != 0 {
            return Ok(());
        }
        let done = libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setgid(gid) == 0
            && libc::setuid(uid) == 0;
        if done { Ok(()) } else { Err(errno()) }
    }
}

/// Gives every signal its default action, and unblocks them all.
///
/// # Safety
/// Only between fork and exec.
unsafe fn reset_signals() {
    // SAFETY: default dispositions run no code of ours; the set is initialised before its use.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Standard input from nowhere, standard output and error appended to `log_file`.
fn redirect(log_file: &CStr) -> Result<(), i32> {
    // SAFETY: the strings end with a zero byte; the descriptors are this process's own.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOCTTY;
        let log = libc::open(log_file.as_ptr(), flags, 0o600);
        if null < 0 || log < 0 {
            return Err(errno());
        }
        let done = libc::dup2(null, 0) == 0 && libc::dup2(log, 1) == 1 && libc::dup2(log, 2) == 2;
        if done { Ok(()) } else { Err(errno()) }
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Points the standard descriptors at nothing: what they led to belongs to whoever started this process.
pub(super) fn close_standard() -> io::Result<()> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?;
    for standard in 0..3 {
        // SAFETY: replaces a standard descriptor by another one; nobody relies on where it led.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Enters a cgroup and waits there to be killed: the child of a rehearsal.
pub(super) fn wait_in_cgroup(procs: BorrowedFd<'_>) -> ! {
    // SAFETY: plain system calls of a process that does nothing else and ends with its parent.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
            libc::_exit(1);
        }
        loop {
            libc::pause();
        }
    }
}

/// Registers a descriptor with the runtime of the calling task.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same descriptor, and stays open, until its drop.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Lets all threads share two heaps: a heap for each thread would keep what that one once used.
pub(crate) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a number of the allocator's; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives the free pages of the heap back to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Drops the pages of programs and libraries that are as their files have them, and has what is used again
/// mapped page by page: by huge pages, or by the 64 KiB that the kernel maps round a page, a few functions would bring all
/// the rest back. It maps nothing beyond a mapping's end, so that each second part becomes a mapping of its own, by a
/// flag that concerns core dumps alone. Returns the mappings, for [`join_program_pages`].
///
/// # Errors
/// The kernel did not say what is mapped. Pages that are locked in memory stay, which is no error.
pub(crate) fn drop_program_pages() -> io::Result<Vec<Range<usize>>> {
    use rustix::mm::Advice;
    let smaps = io::BufReader::with_capacity(4096, std::fs::File::open("/proc/self/smaps")?);
    let mappings = crate::footprint::unchanged(smaps)?;
    let bytes = mappings.iter().map(ExactSizeIterator::len).sum();
    let part = crate::footprint::part(bytes, rustix::param::page_size());
    for mapping in &mappings {
        advise(mapping, Advice::LinuxNoHugepage);
        for start in mapping.clone().step_by(part.saturating_mul(2).max(1)) {
            advise(&(start..start.saturating_add(part).min(mapping.end)), Advice::LinuxDontDump);
        }
        advise(mapping, Advice::LinuxDontNeed);
    }
    Ok(mappings)
}

/// Makes one mapping again of what [`drop_program_pages`] split. What is mapped stays mapped.
pub(crate) fn join_program_pages(mappings: &[Range<usize>]) {
    for mapping in mappings {
        advise(mapping, rustix::mm::Advice::LinuxDoDump);
    }
}

/// Advises the kernel about a part of the program or of a library; a refusal changes nothing.
fn advise(range: &Range<usize>, advice: rustix::mm::Advice) {
    let start = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the kernel has said that the range maps a program or a library, which nobody unmaps, cannot be written
    // to and has no anonymous page: what is read there next is what was there before.
    let _ = unsafe { rustix::mm::madvise(start, range.len(), advice) };
}
