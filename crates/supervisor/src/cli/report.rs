//! `rhone report`: what a maintainer would ask for, packed into one file without secrets.
//!
//! It takes what it can get: where nobody answers, the files of this machine are what is left, and that is when a
//! report is wanted most. What is missing is in it too, with the reason.

mod archive;
mod blank;

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::blank::Secrets;
use super::args::Global;
use super::exit::CliError;
use super::terminal::Terminal;
use super::{client, doctor, events, explain, history, print_json, settings, status};
use crate::civil::WallTime;
use crate::config::{self, Config};
use crate::runtime::clock::wall_time;
use crate::runtime::local::{LOG_FILE, work_dir};

/// The most that is taken of the end of a file.
const TAIL: u64 = 256 << 10;

/// The most that is taken of the metrics.
const METRICS: u64 = 1 << 20;

/// How long the member's own HTTP server may take.
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// What was found, and what was not.
#[derive(Default)]
struct Report {
    files: Vec<(String, String)>,
    missing: Vec<Missing>,
}

/// Something that is not in the report.
#[derive(serde::Serialize)]
struct Missing {
    name: String,
    why: String,
}

/// A file of the report.
#[derive(serde::Serialize)]
struct Content<'a> {
    name: &'a str,
    bytes: usize,
}

impl Report {
    fn add(&mut self, name: &str, found: Result<String, String>) {
        match found {
            Ok(text) => self.files.push((name.to_owned(), text)),
            Err(why) => self.missing.push(Missing { name: name.to_owned(), why }),
        }
    }

    /// Adds an answer as people and as programs read it.
    fn answer<T: serde::Serialize>(
        &mut self,
        name: &str,
        answer: Result<T, CliError>,
        text: impl Fn(&T) -> String,
    ) {
        match answer {
            Ok(answer) => {
                self.add(&format!("{name}.txt"), Ok(text(&answer)));
                let json = serde_json::to_string_pretty(&answer);
                self.add(&format!("{name}.json"), json.map_err(|error| error.to_string()));
            }
            Err(error) => self.add(&format!("{name}.txt"), Err(error.message)),
        }
    }
}

/// Gathers, blanks and writes.
pub(super) async fn run(global: &Global, dir: &Path, terminal: &mut Terminal) -> Result<(), CliError> {
    let mut report = Report::default();
    // With `--host` it is another machine that is asked about.
    let path = global.config.clone().unwrap_or_else(|| config::DEFAULT_PATH.into());
    let local = global.hosts.is_empty() || global.config.is_some();
    let config = client::load_config(global).ok().filter(|_| local);
    let status = of_cluster(global, &mut report).await;
    if local {
        of_machine(&path, config.as_ref(), &mut report).await;
    }
    let secrets = config.as_ref().map(Secrets::of).unwrap_or_default();
    for (_, text) in &mut report.files {
        *text = secrets.blank(text);
    }
    for missing in &mut report.missing {
        missing.why = secrets.blank(&missing.why);
    }
    let mut index = format!("rhone {}, {}\n", env!("CARGO_PKG_VERSION"), WallTime::from_ms(wall_time()));
    for (name, text) in &report.files {
        // Writing to a String cannot fail.
        let _ok = writeln!(index, "{name}: {} bytes", text.len());
    }
    for Missing { name, why } in &report.missing {
        let _ok = writeln!(index, "{name}: missing: {why}");
    }
    report.files.insert(0, ("report.txt".to_owned(), index));

    let member = config.as_ref().map(|config| config.node.name.clone());
    let name = member.or(status).unwrap_or_else(|| "unknown".to_owned());
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().filter(|c| good(*c)).take(63).collect();
    let now = wall_time();
    // 2026-11-21T07:13:00.123Z, as a name of a file.
    let time = WallTime::from_ms(now).to_string();
    let time: String = time.chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let folder = format!("rhone-report-{name}-{time}Z");
    let packed = archive::pack(&folder, &report.files, now / 1000);
    let file = dir.join(format!("{folder}.tar.gz"));
    let written = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&file);
    written
        .and_then(|mut open| open.write_all(&packed).and_then(|()| open.sync_all()))
        .map_err(|error| CliError::failed(format!("write {}: {error}", file.display())))?;
    tell(global, &file, &report, terminal)
}

fn tell(global: &Global, file: &Path, report: &Report, terminal: &mut Terminal) -> Result<(), CliError> {
    let contents: Vec<Content<'_>> =
        report.files.iter().map(|(name, text)| Content { name, bytes: text.len() }).collect();
    if global.json() {
        let told = serde_json::json!({ "file": file, "contents": contents, "missing": report.missing });
        return print_json(terminal, &told);
    }
    let mut text = format!("{}\n", file.display());
    for Content { name, bytes } in contents {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "  {name}: {bytes} bytes");
    }
    for Missing { name, why } in &report.missing {
        let _ok = writeln!(text, "  {name}: missing: {why}");
    }
    terminal.data(&text);
    terminal.talk("hint: look into it before you send it: names and addresses are in it, and the log of Postgres may hold statements");
    Ok(())
}

/// Asks the cluster; returns its name.
async fn of_cluster(global: &Global, report: &mut Report) -> Option<String> {
    let status = status::fetch(global).await;
    if let Err(error) = status {
        let what = "status, explain, history, events, settings, doctor";
        report.add(what, Err(error.message));
        return None;
    }
    let name = status.as_ref().ok().map(|status| status.cluster.clone());
    report.answer("status", status, |status| status::render(status, false));
    report.answer("explain", explain::fetch(global).await, explain::render);
    report.answer("history", history::fetch(global, 0).await, |entries| history::render(entries));
    report.answer("events", events::remembered(global).await, |list| list.iter().map(events::line).collect());
    report.answer("settings", settings::fetch(global).await, |view| crate::settings::as_toml(&view.values));
    report.answer("settings-history", settings::versions(global, 0).await, |list| settings::table(list));
    report.answer("doctor", doctor::fetch(global).await, |list| list.iter().map(doctor::line).collect());
    name
}

/// Reads what is on this machine.
async fn of_machine(path: &Path, config: Option<&Config>, report: &mut Report) {
    let text =
        |path: &Path| std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    report.add("rhone.toml", text(path));
    let environment = config::environment();
    let ours = environment.iter().filter(|(name, _)| name.starts_with("RHONE_"));
    let ours: Vec<String> = ours.map(|(name, value)| format!("{name}={value}")).collect();
    report.add("environment.txt", Ok(ours.join("\n")));
    report.add("machine.txt", Ok(machine(config)));
    let Some(config) = config else {
        let problems = Config::load(path, &environment).err().map(|errors| errors.to_string());
        return report.add("check.txt", Ok(problems.unwrap_or_default()));
    };
    let found =
        [config::inspect(config), config::advice(config), config::unreadable_secrets(config)].concat();
    let found: Vec<String> = found.into_iter().map(|problem| problem.message).collect();
    report.add("check.txt", Ok(found.join("\n")));
    report.add("metrics.txt", metrics(config).await);
    let recorded = config.node.recorder.as_deref();
    report.add("decisions.jsonl", recorded.map_or_else(|| Err("node.recorder is off".to_owned()), tail));
    if let Some(postgres) = &config.postgres {
        report.add("postgres.log", tail(&work_dir(&postgres.data_dir).join(LOG_FILE)));
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> Result<String, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        let skip = size.saturating_sub(TAIL);
        file.seek(SeekFrom::Start(skip))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        if skip > 0 {
            // The first line is half a one.
            let whole = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.drain(..whole);
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Asks this member's own HTTP server.
async fn metrics(config: &Config) -> Result<String, String> {
    let mut address = config.node.http.clone();
    if address.is_wildcard() {
        address.host = if address.host.contains(':') { "::1".to_owned() } else { "127.0.0.1".to_owned() };
    }
    let asking = async {
        let mut stream = tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut bytes = Vec::new();
        stream.take(METRICS).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let answer = tokio::time::timeout(HTTP_LIMIT, asking).await;
    let text = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| format!("{address}: {error}"))?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("{address}: no answer"))?;
    Ok(body.to_owned())
}

/// Says what machine this is.
fn machine(config: Option<&Config>) -> String {
    let uname = rustix::system::uname();
    let words = [uname.sysname(), uname.release(), uname.version(), uname.machine()];
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let mut text = format!("rhone {}\n{}\n", env!("CARGO_PKG_VERSION"), words.join(" "));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    // Writing to a String cannot fail.
    let _ok = writeln!(text, "cores: {cores}");
    for (file, lines) in
        [("/etc/os-release", 4), ("/proc/meminfo", 3), ("/proc/loadavg", 1), ("/proc/uptime", 1)]
    {
        let Ok(content) = std::fs::read_to_string(file) else { continue };
        for line in content.lines().take(lines) {
            let _ok = writeln!(text, "{file}: {line}");
        }
    }
    let data = config.and_then(|config| config.postgres.as_ref()).map(|postgres| postgres.data_dir.as_path());
    for dir in data.into_iter().chain(config.map(|config| config.node.state_dir.as_path())) {
        let _ok = match rustix::fs::statvfs(dir) {
            Ok(room) => writeln!(
                text,
                "{}: {} of {} free",
                dir.display(),
                config::units::print_size(room.f_bavail.saturating_mul(room.f_frsize)),
                config::units::print_size(room.f_blocks.saturating_mul(room.f_frsize))
            ),
            Err(error) => writeln!(text, "{}: {error}", dir.display()),
        };
    }
    text
}
