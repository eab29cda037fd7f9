//! Attacks that take more than the job's share of the machine, or stay longer than the job.

use meshfarm_sandbox::Level;

use crate::attack::{
    Attack,
    Control::{self, Unconfined, Without},
    Family,
    Layer::{self, HiddenProcesses, Limits, NoCapabilities, PrivateFolders, ProcessNamespace},
    Prepare,
};

const fn attack(
    name: &'static str,
    tries: &'static str,
    stopped_by: &'static [Layer],
    control: Control,
) -> Attack {
    Attack::new(Family::Resources, name, tries, stopped_by, control)
}

#[rustfmt::skip]
pub(super) const ATTACKS: &[Attack] = &[
    attack("make-many-processes", "forks until it cannot",
        &[Limits], Without(&[Limits])),
    attack("make-many-threads", "starts threads until it cannot",
        &[Limits], Without(&[Limits])),
    attack("take-private-memory", "maps private memory and writes to it",
        &[Limits], Without(&[Limits])),
    attack("take-private-memory-by-the-heap", "allocates until it cannot",
        &[Limits], Without(&[Limits])),
    attack("take-shared-memory", "maps shared memory, which no limit of a process counts",
        &[Limits], Without(&[Limits])).only_from(Level::S3),
    attack("take-memory-as-a-file", "fills a nameless file in memory",
        &[Limits], Without(&[Limits])).only_from(Level::S3),
    attack("take-memory-in-many-processes", "shares the memory out among processes",
        &[Limits], Without(&[Limits])).only_from(Level::S3),
    attack("fill-the-private-folder", "fills /tmp",
        &[PrivateFolders], Unconfined),
    attack("fill-the-shared-memory-folder", "fills /dev/shm",
        &[PrivateFolders], Unconfined),
    attack("fill-the-home-folder", "fills the home folder",
        &[PrivateFolders], Unconfined),
    attack("write-a-long-file", "writes a file longer than allowed",
        &[Limits], Without(&[Limits])),
    attack("stretch-a-file", "makes a hollow file of a terabyte",
        &[Limits], Without(&[Limits])),
    attack("reserve-a-long-file", "reserves room for a file longer than allowed",
        &[Limits], Without(&[Limits])),
    attack("leave-a-memory-image", "leaves an image of its memory by crashing",
        &[Limits], Without(&[Limits])),
    attack("open-many-files", "opens files until it cannot",
        &[Limits], Without(&[Limits])),
    attack("raise-its-own-limit", "raises its limit of open files first",
        &[Limits, NoCapabilities], Without(&[Limits])),
    attack("lock-much-memory", "locks memory, so that it cannot be swapped out",
        &[Limits], Without(&[Limits])),
    attack("queue-many-signals", "queues signals until it cannot",
        &[Limits], Without(&[Limits])),
    attack("watch-from-many-places", "takes all places that the host's user may watch files from",
        &[HiddenProcesses], Without(&[HiddenProcesses])),
    attack("spin-for-ever", "uses more processor time than it has",
        &[Limits], Without(&[Limits])).with(Prepare::LittleTime),
    attack("stay-as-a-daemon", "leaves a process with another session and parent",
        &[ProcessNamespace], Unconfined),
    attack("stay-deaf-to-signals", "leaves one that ignores every signal",
        &[ProcessNamespace], Unconfined),
    attack("stay-stopped", "leaves one that is stopped",
        &[ProcessNamespace], Unconfined),
    attack("stay-by-running-away", "leaves one that is a new process every moment",
        &[ProcessNamespace], Unconfined),
    attack("stay-with-the-outputs-open", "leaves one that writes to the outputs while they are collected",
        &[ProcessNamespace], Unconfined),
    attack("stay-as-the-parent-of-the-orphans", "makes itself the parent of orphans first",
        &[ProcessNamespace], Unconfined),
    attack("stay-when-the-program-is-killed", "leaves one and is killed",
        &[ProcessNamespace], Unconfined),
];
