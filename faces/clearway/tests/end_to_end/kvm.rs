//! `clearway vm` with guests under KVM, as far as no KVM is needed: what is refused and how, and the VMs that run, whose
//! workers are played here.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, mpsc},
};

use device_control::{
    Client, Completion, DeviceControlHandler, DeviceControlServer, DriverName, PendingRequest,
    Request, ServerConfig,
};
use pcivirt_protocol::NtStatus;
use serde_json::{Value, json};
use vm_worker::control::{PrivateControl, SHUT_DOWN_CAPACITY, ShutDownAnswer};

use crate::common::*;

/// `clearway vm`, with a folder of its own for the VMs of this user.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn vm(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(CLEARWAY);
        command.env("XDG_RUNTIME_DIR", self.0.path()).current_dir(self.0.path());
        command.arg("vm").args(arguments).output().unwrap()
    }

    fn run_under_kvm(&self, device: &str) -> Output {
        let device = format!("--kvm={device}");
        self.vm(&["run", "web", &device, "--kernel", "vmlinuz"])
    }

    fn vms(&self) -> PathBuf {
        self.0.path().join("clearway-vms")
    }

    fn worker(&self, play: impl Fn(u32) -> Play + Send + Sync + 'static) -> Worker {
        Worker::start(&self.vms().join("web.worker"), play)
    }
}

#[test]
fn without_a_usable_kvm_one_line_says_what_is_wrong_and_what_to_do() {
    let home = Home::new();
    let absent = home.run_under_kvm("absent");
    let words = ["VM web cannot run: there is no absent: ", "load kvm-intel or kvm-amd"];
    assert_refused(&absent, &words);
    // It can be opened, and is something else.
    let other = home.run_under_kvm("/dev/null");
    assert_refused(&other, &["VM web cannot run: /dev/null is not Linux's KVM"]);
    for user in User::all() {
        if user == User::Same && rustix::process::geteuid().is_root() {
            println!("skipped as root: root may open everything");
            continue;
        }
        let directory = user.directory();
        let path = directory.path().join("kvm");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        let device = format!("--kvm={}", path.display());
        let home = directory.path().to_str().unwrap();
        let arguments = ["vm", "run", "web", &device, "--kernel", "vmlinuz"];
        let forbidden = user.clearway_with(&arguments, &[("XDG_RUNTIME_DIR", home)]);
        assert_refused(
            &forbidden,
            &["VM web cannot run: this user may not open ", "join its group"],
        );
    }
    // Nothing of it is left.
    assert_eq!(std::fs::read_dir(home.vms()).unwrap().count(), 0);
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let home = Home::new();
    let (kvm, kernel) = ("--kvm", ["--kernel", "vmlinuz"]);
    let user = ["--worker", "web.sock"];
    let all = |parts: &[&[&'static str]]| parts.concat();
    let cases: [(Vec<&str>, &str); 15] = [
        (vec![], "--vf-socket <SOCKET>|--worker <SOCKET>|--kvm"),
        (vec![kvm], "--kernel <FILE>"),
        (all(&[&kernel, &user]), "--kvm"),
        (all(&[&user, &["--console", "none"]]), "--kvm"),
        (all(&[&user, &["--processors", "2"]]), "--kvm"),
        (all(&[&user, &["--no-reboot"]]), "--kvm"),
        (all(&[&user, &["--disk", "a.raw"]]), "--kvm"),
        (all(&[&[kvm], &kernel, &["--disk", ",ro"]]), "a file is missing: FILE, or FILE,ro"),
        (all(&[&[kvm], &kernel, &["--vf-socket", "vf0.sock"]]), "cannot be used with"),
        (all(&[&[kvm], &kernel, &["--ip", "10.0.0.1/24"]]), "cannot be used with"),
        (all(&[&[kvm], &kernel, &["--queue-pairs", "2"]]), "cannot be used with"),
        (all(&[&[kvm], &kernel, &["--", "bash"]]), "cannot be used with"),
        (all(&[&[kvm], &kernel, &["--processors", "0"]]), "--processors <N>"),
        (all(&[&[kvm], &kernel, &["--memory", "0"]]), "--memory <MIB>"),
        (all(&[&user, &["--vf-socket", "vf0.sock"]]), "cannot be used with"),
    ];
    for (options, words) in cases {
        let output = home.vm(&[["run", "web"].as_slice(), &options].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {message}");
        assert!(message.contains(words), "{options:?}: no {words:?} in {message}");
    }
    let output = home.vm(&["run", "a/b", kvm, "--kernel", "vmlinuz"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("without spaces or slashes"));
}

#[test]
fn a_file_that_cannot_be_a_disk_is_refused_with_what_to_do() {
    let home = Home::new();
    let file = |name: &str, bytes: &[u8]| std::fs::write(home.0.path().join(name), bytes).unwrap();
    file("disk.raw", &[0; 1024]);
    file("odd.raw", &[0; 1000]);
    file("debian.qcow2", b"QFI\xFB and more");
    file("taken.raw", &[0; 512]);
    let taken = std::fs::File::open(home.0.path().join("taken.raw")).unwrap();
    rustix::fs::flock(&taken, rustix::fs::FlockOperation::LockShared).unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["missing.raw"], &["the disk image missing.raw does not exist"]),
        (&["."], &["is a directory"]),
        (&["odd.raw,ro"], &["1000 bytes", "truncate -s %512 odd.raw"]),
        (&["debian.qcow2"], &["a qcow2 image", "qemu-img convert -O raw debian.qcow2 debian.raw"]),
        (&["disk.raw", "disk.raw,ro"], &["disk.raw is given twice"]),
        (&["disk.raw", "taken.raw"], &["taken.raw is in use: another program, such as a VM,"]),
    ];
    for (disks, words) in cases {
        let mut arguments = vec!["run", "web", "--kvm=absent", "--kernel", "vmlinuz"];
        arguments.extend(disks.iter().flat_map(|disk| ["--disk", disk]));
        let words = [&["VM web cannot run: "], words].concat();
        assert_refused(&home.vm(&arguments), &words);
    }
    // These can be disks: what is missing is KVM.
    let fine = ["--disk", "disk.raw", "--disk", "taken.raw,ro"];
    let run = ["run", "web", "--kvm=absent", "--kernel", "vmlinuz"];
    assert_refused(&home.vm(&[&run[..], &fine].concat()), &["there is no absent: "]);
}

/// What a played worker does when it is asked something.
enum Play {
    Completes(Completion),
    /// Completes the request, and ends.
    Ends(Completion),
    Pends,
}

struct Played {
    play: Box<dyn Fn(u32) -> Play + Send + Sync>,
    pending: mpsc::Sender<PendingRequest>,
    end: mpsc::Sender<()>,
}

impl DeviceControlHandler for Played {
    fn private(&self, _client: &Client, code: u32, request: Request) {
        match (self.play)(code) {
            Play::Completes(completion) => request.complete(completion),
            Play::Ends(completion) => {
                request.complete(completion);
                self.end.send(()).unwrap();
            }
            Play::Pends => self.pending.send(request.pend()).unwrap(),
        }
    }
}

/// The worker of a VM under KVM, played. It ends with the VM, or when this is dropped.
struct Worker(Option<std::thread::JoinHandle<()>>, mpsc::Sender<()>);

impl Worker {
    fn start(path: &Path, play: impl Fn(u32) -> Play + Send + Sync + 'static) -> Self {
        let (pending, kept) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let handler = Played { play: Box::new(play), pending, end: end.clone() };
        let config = ServerConfig::new(path, DriverName::new("web").unwrap());
        let server = DeviceControlServer::start(config, Arc::new(handler)).unwrap();
        let thread = std::thread::spawn(move || {
            ends.recv().unwrap();
            drop((server, kept));
        });
        Self(Some(thread), end)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.1.send(());
        self.0.take().unwrap().join().unwrap();
    }
}

fn is(control: PrivateControl, code: u32) -> bool {
    PrivateControl::from_code(code) == Some(control)
}

fn answer(answer: ShutDownAnswer) -> Completion {
    Completion::output(serde_json::to_vec(&answer).unwrap(), SHUT_DOWN_CAPACITY)
}

#[test]
fn vms_under_kvm_are_listed_and_what_they_cannot_do_is_said() {
    let home = Home::new();
    let none = home.vm(&["list", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&none.stdout).unwrap(), json!([]));
    for command in [["stop", "web"], ["stats", "web"], ["exec", "web"]] {
        let words = ["there is no VM web of this user", "`clearway vm list`"];
        assert_refused(&home.vm(&command), &words);
    }

    let worker = home.worker(|_| Play::Pends);
    let socket = home.vms().join("web.worker");
    let listed = home.vm(&["list", "--json"]);
    let expected =
        json!([{"name": "web", "kind": "kvm", "pid": std::process::id(), "socket": socket}]);
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap(), expected);
    let listed = text(&home.vm(&["list"]).stdout);
    assert!(listed.contains("web              KVM"), "{listed}");
    assert!(listed.trim_end().ends_with("web.worker"), "{listed}");
    let words = "VM web is a guest under KVM, which this command cannot look into: ";
    assert_refused(&home.vm(&["stats", "web"]), &[words, "`clearway switch show`"]);
    assert_refused(&home.vm(&["exec", "web"]), &[words, "console"]);
    assert_refused(&home.vm(&["set-vf", "web", "up"]), &[words, "`ip link set dev VF up|down`"]);
    // A name is one VM's.
    let words = ["a KVM VM web of this user runs already", "take another name"];
    assert_refused(&home.run_under_kvm("absent"), &words);
    assert_refused(&home.vm(&["run", "web", "--worker", "w.sock", "--", "true"]), &words);
    drop(worker);
}

#[test]
fn a_guest_is_asked_to_shut_down_and_waited_for() {
    let home = Home::new();
    let _worker = home.worker(|code| match code {
        _ if is(PrivateControl::ShutDownGuest, code) => {
            Play::Completes(answer(ShutDownAnswer::Initiated))
        }
        // The guest ends while its end is waited for.
        _ if is(PrivateControl::NextReport, code) => {
            Play::Ends(Completion::status(NtStatus::CANCELLED))
        }
        _ => Play::Completes(Completion::status(NtStatus::INVALID_PARAMETER)),
    });
    let output = home.vm(&["stop", "web"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_guest_that_cannot_be_asked_or_does_not_want_to_is_ended_by_force_alone() {
    let cases = [
        (Completion::status(NtStatus::NOT_SUPPORTED), "it is not offered that service"),
        (Completion::status(NtStatus::DEVICE_NOT_READY), "no driver for its shutdown service"),
        (Completion::status(NtStatus::IO_TIMEOUT), "the guest does not answer"),
        (Completion::status(NtStatus::DEVICE_BUSY), "is being asked to shut down already"),
        (
            answer(ShutDownAnswer::Refused { status: 0x8007_0005 }),
            "the guest refuses to shut down, with 0x80070005",
        ),
    ];
    for (completion, words) in cases {
        let home = Home::new();
        let _worker = home.worker(move |code| match code {
            _ if is(PrivateControl::ShutDownGuest, code) => Play::Completes(completion.clone()),
            _ if is(PrivateControl::Shutdown, code) => {
                Play::Ends(Completion::status(NtStatus::SUCCESS))
            }
            _ => Play::Pends,
        });
        let refused = home.vm(&["stop", "web"]);
        assert_refused(&refused, &["VM web, served at ", words, "`clearway vm stop --force web`"]);
        let forced = home.vm(&["stop", "--force", "web"]);
        assert!(forced.status.success(), "{}", text(&forced.stderr));
    }
    let home = Home::new();
    let _worker = home.worker(|code| match code {
        _ if is(PrivateControl::ShutDownGuest, code) => {
            Play::Completes(answer(ShutDownAnswer::Initiated))
        }
        _ => Play::Pends,
    });
    let slow = home.vm(&["stop", "web", "--timeout", "1"]);
    assert_refused(&slow, &["has not ended within 1 s", "--timeout", "--force"]);
}
