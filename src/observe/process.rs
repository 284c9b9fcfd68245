//! What Prometheus expects of every process: CPU time, memory, open files and the start.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::SystemTime;

/// When the process began, as near as it can tell.
static START: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// Notes the start of the process; to be called early.
pub(crate) fn started() {
    LazyLock::force(&START);
}

/// Adds the present figures, under the names that all processes have.
pub(super) fn register(registry: &mut Registry) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let counter = Counter::<f64, AtomicU64>::default();
    counter.inc_by(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    let help = "User and system CPU time spent";
    registry.register_with_unit("process_cpu", help, Unit::Seconds, counter);
    let start = START.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(start.as_secs_f64());
    let help = "Start of the process since 1970";
    registry.register_with_unit("process_start_time", help, Unit::Seconds, gauge);
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, of(bytes));
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        // Reading the folder opens one.
        let open = files.count().saturating_sub(1) as i64;
        registry.register("process_open_fds", "Open file descriptors", of(open));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        registry.register("process_max_fds", "Most file descriptors that may be open", of(most));
    }
}

/// Linux alone has it there.
fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * i64::try_from(rustix::param::page_size()).ok()?)
}

fn of(value: i64) -> Gauge<i64, AtomicI64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}
