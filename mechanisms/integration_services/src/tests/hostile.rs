//! Whatever a guest sends, in whatever order.

use integration_protocol::{HeaderFlags, Heartbeat, Negotiate, REASON_PLANNED, Status, Version};
use proptest::prelude::*;

use super::*;
use crate::{HeartbeatService, ShutdownAction, ShutdownRequest, ShutdownService, TimeSyncService};

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close,
    Ask,
    Pass(u64),
    HostSends,
    /// The guest answers the packet that is so far back, and changes a byte of it.
    Answer(usize, Option<(usize, u8)>),
    Say(Vec<u8>),
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let version = (0..5u16, 0..3u16).prop_map(|(major, minor)| Version::new(major, minor));
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        (0..6u64, any::<u32>()).prop_map(|(sequence, state)| {
            Heartbeat { sequence, state: integration_protocol::ApplicationState(state) }.emit()
        }),
        (
            proptest::collection::vec(version.clone(), 0..3),
            proptest::collection::vec(version, 0..3)
        )
            .prop_map(|(framework, message)| Negotiate { framework, message }.emit().unwrap()),
    ];
    (0..9u16, 0..6u8, prop_oneof![Just(5u8), any::<u8>()], any::<bool>(), body).prop_map(
        |(number, transaction, flags, fails, body)| {
            let kind = MessageType::from_wire(number).unwrap();
            let mut message = Message::request(kind, transaction, &body);
            message.flags = HeaderFlags::from_bits_retain(flags);
            message.status = if fails { Status::FAIL } else { Status::SUCCESS };
            message.emit().unwrap()
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Open),
        1 => Just(Step::Close),
        2 => Just(Step::Ask),
        3 => (0..20_000u64).prop_map(Step::Pass),
        6 => Just(Step::HostSends),
        6 => (0..4usize, proptest::option::of((0..2100usize, any::<u8>())))
            .prop_map(|(back, change)| Step::Answer(back, change)),
        4 => message().prop_map(Step::Say),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Step::Say),
    ]
}

fn run<S: IntegrationService>(service: S, steps: &[Step], ask: impl Fn(&mut S, Duration)) {
    let mut world = World::new(service);
    let mut open = false;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for step in steps {
        match step {
            Step::Open => {
                world.open();
                open = true;
            }
            Step::Close => {
                world.close();
                open = false;
            }
            Step::Ask => ask(&mut world.host, world.now),
            Step::Pass(milliseconds) => world.now += Duration::from_millis(*milliseconds),
            Step::HostSends => {
                // However long it was not heard, there is little to say.
                assert!(world.host_sends() <= 2);
                seen.extend(world.to_guest.drain(..));
            }
            Step::Answer(back, change) => {
                let Some(at) = seen.len().checked_sub(1 + back) else { continue };
                let Some(mut answer) = world.guest.answer(&seen[at]) else { continue };
                if let Some((at, byte)) = change
                    && let Some(old) = answer.get_mut(*at)
                {
                    *old = *byte;
                }
                world.say(&answer);
            }
            Step::Say(packet) => world.say(packet),
        }
        assert!(open || world.host.session().phase() == Phase::Offered);
        assert!(!open || world.host.session().phase() != Phase::Offered);
    }
    // Whatever it was: a driver that is loaded now is served.
    world.guest = GuestDriver::new(world.host.session().service());
    world.open();
    world.settle();
    assert!(matches!(world.host.session().phase(), Phase::Ready(_)));
}

proptest! {
    #[test]
    fn no_guest_can_break_a_service(steps in proptest::collection::vec(step(), 0..80)) {
        run(ShutdownService::new(), &steps, |service, now| {
            let action = ShutdownAction::Restart;
            let request =
                ShutdownRequest { action, force: true, reason: REASON_PLANNED, limit_seconds: 0 };
            let _ = service.request(request, seconds(10), now);
        });
        run(HeartbeatService::new(), &steps, |_, _| {});
        run(TimeSyncService::new(true), &steps, TimeSyncService::resynchronize);
        run(TimeSyncService::new(false), &steps, TimeSyncService::resynchronize);
    }
}
