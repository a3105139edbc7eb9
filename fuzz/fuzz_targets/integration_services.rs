//! A guest's packets on the channels of the integration services, with requests of the host's and time in between.
//! Whatever comes, there is little to send at a time, and a driver that is loaded afterwards is served.
#![no_main]

use std::time::Duration;

use clearway_fuzz::Input;
use integration_protocol::{
    Heartbeat, Message, Negotiate, Service, ShutdownAction, ShutdownRequest, TimeSync,
};
use integration_services::{
    HeartbeatService, HostTime, IntegrationService, Phase, ShutdownService, TimeSyncService,
    testing::GuestDriver,
};
use libfuzzer_sys::fuzz_target;

fn parse(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        let again = message.emit().expect("what was understood can be said");
        assert_eq!(Message::parse(&again), Ok(message));
    }
    if let Ok(list) = Negotiate::parse(bytes) {
        let again = list.emit().expect("what was understood can be said");
        assert_eq!(Negotiate::parse(&again).as_ref(), Ok(&list));
        let _ = list.choice();
    }
    if let Ok(request) = ShutdownRequest::parse(bytes) {
        assert_eq!(ShutdownRequest::parse(&request.emit()), Ok(request));
    }
    if let Ok(beat) = Heartbeat::parse(bytes) {
        assert_eq!(Heartbeat::parse(&beat.emit()), Ok(beat));
    }
    for version in Service::TimeSync.versions() {
        if let Ok(time) = TimeSync::parse(bytes, *version) {
            assert_eq!(TimeSync::parse(&time.emit(), *version), Ok(time));
        }
    }
}

/// What the host has to say now.
fn say(service: &mut impl IntegrationService, now: Duration, utc: u64) -> Vec<Vec<u8>> {
    let mut time = || HostTime { utc, reference: Some(utc / 2) };
    service.poll(now);
    let mut said = Vec::new();
    while service.deadline().is_some_and(|due| due <= now) {
        let Some(message) = service.next_message(now, &mut time) else { break };
        said.push(message);
    }
    assert!(said.len() <= 2);
    assert!(service.deadline().is_none_or(|due| due > now), "nothing spins");
    said
}

fn session<S: IntegrationService>(
    mut service: S,
    mut input: Input<'_>,
    ask: impl Fn(&mut S, Duration),
) {
    let kind = service.session().service();
    let mut guest = GuestDriver::new(kind);
    let mut now = Duration::from_secs(1);
    let mut open = false;
    let mut last = Vec::new();
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => {
                service.opened(now);
                open = true;
            }
            1 => {
                service.closed();
                open = false;
            }
            2 => ask(&mut service, now),
            3 => now += Duration::from_millis(input.word().into()),
            4 => {
                let utc = input.qword();
                last = say(&mut service, now, utc).pop().unwrap_or(last);
            }
            5 => drop(service.receive(input.short(), now)),
            // An answer, and one of which a byte is another.
            which => {
                let Some(mut answer) = guest.answer(&last) else { continue };
                if which == 6 {
                    let at = input.below(answer.len());
                    answer[at] = input.byte();
                }
                let _ = service.receive(&answer, now);
            }
        }
        assert_eq!(open, service.session().phase() != Phase::Offered);
    }
    service.opened(now);
    for packet in say(&mut service, now, 0) {
        let answer = GuestDriver::new(kind).answer(&packet).expect("a list of versions");
        service.receive(&answer, now).expect("a choice");
    }
    assert!(matches!(service.session().phase(), Phase::Ready(_)));
}

fuzz_target!(|data: &[u8]| {
    parse(data);
    let mut framed = vec![1, 0, 0, 0];
    framed.extend(u32::try_from(data.len()).expect("an input").to_le_bytes());
    framed.extend(data);
    parse(&framed);
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => session(ShutdownService::new(), input, |service, now| {
            let action = ShutdownAction::Hibernate;
            let request = ShutdownRequest { action, force: true, reason: 0, limit_seconds: 0 };
            let _ = service.request(request, Duration::from_secs(10), now);
        }),
        1 => session(HeartbeatService::new(), input, |_, _| {}),
        2 => session(TimeSyncService::new(false), input, TimeSyncService::resynchronize),
        _ => session(TimeSyncService::new(true), input, TimeSyncService::resynchronize),
    }
});
