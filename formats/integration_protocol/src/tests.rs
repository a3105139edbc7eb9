//! The published bytes, and back.

use proptest::prelude::*;
use vmbus_protocol::PipeType;

use super::*;

fn versions() -> impl Strategy<Value = Version> {
    (0..6u16, 0..4u16).prop_map(|(major, minor)| Version { major, minor })
}

#[test]
fn a_hosts_list_of_versions_has_the_published_bytes() {
    let list = Negotiate {
        framework: FRAMEWORK_VERSIONS.to_vec(),
        message: Service::Heartbeat.versions().to_vec(),
    };
    let body = list.emit().unwrap();
    let bytes = Message::request(MessageType::Negotiate, 7, &body).emit().unwrap();
    let expected: Vec<u8> = [
        &[1, 0, 0, 0, 44, 0, 0, 0][..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 7, 3, 0, 0],
        &[2, 0, 2, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 3, 0, 0, 0],
        &[1, 0, 0, 0, 3, 0, 0, 0],
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn an_answer_that_reuses_the_requests_bytes_is_understood() {
    // As Linux does it: the pipe still counts the host's versions, the message only what it chose.
    let bytes: Vec<u8> = [
        &[1, 0, 0, 0, 44, 0, 0, 0][..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 7, 5, 0, 0],
        &[1, 0, 1, 0, 0, 0, 0, 0],
        &[3, 0, 0, 0, 3, 0, 0, 0],
        &[1, 0, 0, 0, 3, 0, 0, 0],
        &[0; 4],
    ]
    .concat();
    let message = Message::parse(&bytes).unwrap();
    assert!(message.is_answer());
    assert_eq!((message.transaction, message.body.len()), (7, 16));
    let chosen = Versions { framework: Version::new(3, 0), message: Version::new(3, 0) };
    assert_eq!(Negotiate::parse(message.body).unwrap().choice(), Ok(Some(chosen)));
}

#[test]
fn requests_have_their_published_bytes() {
    let restart = ShutdownRequest {
        action: ShutdownAction::Restart,
        force: true,
        reason: REASON_PLANNED,
        limit_seconds: 5,
    };
    let bytes = restart.emit();
    assert_eq!(bytes.len(), 2060);
    assert_eq!(bytes[..12], [0, 0, 0, 0x80, 5, 0, 0, 0, 3, 0, 0, 0]);
    assert!(bytes[12..].iter().all(|byte| *byte == 0));

    let beat = Heartbeat { sequence: 0x0102, state: ApplicationState::HEALTHY }.emit();
    assert_eq!(beat.len(), 40);
    assert_eq!(beat[..12], [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);

    let at = TICKS_FROM_1601_TO_1970;
    assert_eq!(at, 0x019D_B1DE_D53E_8000);
    let mut time = TimeSync { host_time: at, reference: None, purpose: TimeSyncPurpose::Sync };
    let bytes = time.emit();
    assert_eq!(bytes[..8], at.to_le_bytes());
    assert_eq!((bytes.len(), bytes[24]), (28, 1));
    time.reference = Some(9);
    time.purpose = TimeSyncPurpose::Sample;
    let bytes = time.emit();
    assert_eq!((bytes.len(), bytes[8], bytes[16]), (24, 9, 2));
}

#[test]
fn services_are_offered_as_pipes_of_messages_under_their_published_names() {
    let text =
        |service: Service| (service.interface_id().to_string(), service.instance_id().to_string());
    let names = [
        ("0E0B6031-5213-4934-818B-38D90CED39DB", "B6650FF7-33BC-4840-8048-E0676786F393"),
        ("57164F39-9115-4E78-AB55-382F3BD5422D", "FD149E91-82E0-4A7D-AFA6-2A4166CBD7C0"),
        ("9527E630-D0AE-497B-ADCE-E80AB0175CAF", "2DD1CE17-079E-403C-B352-A1921EE207EE"),
    ];
    for (service, (interface, instance)) in Service::ALL.into_iter().zip(names) {
        assert_eq!(text(service), (interface.to_owned(), instance.to_owned()));
        assert_eq!(service.offer_flags().bits(), 0x10);
        assert_eq!(service.user_defined().pipe().unwrap().pipe_type, PipeType::Message);
        assert!(service.versions().is_sorted());
    }
}

#[test]
fn what_is_cut_off_or_makes_no_sense_is_refused() {
    use IntegrationProtocolError as Error;
    let body = Heartbeat { sequence: 1, state: ApplicationState::UNKNOWN }.emit();
    let good = Message::request(MessageType::Heartbeat, 1, &body).emit().unwrap();
    for length in 0..good.len() {
        let cut = Message::parse(&good[..length]);
        assert!(matches!(cut, Err(Error::Truncated { .. })), "{length}: {cut:?}");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        Message::parse(&changed).map(|message| message.body.len())
    };
    assert_eq!(with(0, &[2]), Err(Error::NotData(2)));
    assert_eq!(with(4, &[0xFF; 4]), Err(Error::TooLong { length: 0xFFFF_FFFF }));
    assert_eq!(
        with(4, &[20]),
        Err(Error::Truncated { what: "a message's body", needed: 40, length: 0 })
    );
    assert_eq!(
        with(12, &[9]),
        Err(Error::Field { what: "a message header", field: "the message type", value: 9 })
    );
    assert_eq!(with(18, &[0]), Ok(0));
    assert!(matches!(
        Message::request(MessageType::Heartbeat, 1, &[0; MAX_MESSAGE_SIZE]).emit(),
        Err(Error::TooLong { .. })
    ));

    let many = [vec![101, 0, 0, 0, 0, 0, 0, 0], vec![0; 500]].concat();
    assert!(matches!(Negotiate::parse(&many), Err(Error::Field { value: 101, .. })));
    let short = [1, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0];
    assert!(matches!(Negotiate::parse(&short), Err(Error::Truncated { needed: 20, .. })));
    let list = Negotiate { framework: vec![Version::new(1, 0); 101], message: Vec::new() };
    assert!(list.emit().is_err());

    for flags in [6, 7, 8, 0x8000_0000u32] {
        let mut bytes = vec![0; 2060];
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        assert!(matches!(ShutdownRequest::parse(&bytes), Err(Error::Field { .. })), "{flags}");
    }
    assert!(TimeSync::parse(&[3; 28], Version::new(3, 0)).is_err());
    assert!(TimeSync::parse(&[0; 23], Version::new(4, 0)).is_err());
}

#[test]
fn an_answer_chooses_one_of_each_or_nothing() {
    let v = |major| Version::new(major, 0);
    let choice = |framework: &[Version], message: &[Version]| {
        Negotiate { framework: framework.to_vec(), message: message.to_vec() }.choice()
    };
    let chosen = Versions { framework: v(1), message: v(4) };
    assert_eq!(choice(&[v(1)], &[v(4)]), Ok(Some(chosen)));
    assert_eq!(choice(&[], &[]), Ok(None));
    assert_eq!(choice(&[v(1)], &[]), Ok(None));
    assert_eq!(choice(&[], &[v(1), v(2)]), Ok(None));
    assert!(choice(&[v(1), v(3)], &[v(4)]).is_err());
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were(
        number in 0..9u16,
        framework in versions(),
        version in versions(),
        status: u32,
        transaction: u8,
        flags: u8,
        body in proptest::collection::vec(any::<u8>(), 0..3000),
        padding in 0..8usize,
    ) {
        let message = Message {
            framework,
            message_type: MessageType::from_wire(number).unwrap(),
            version,
            status: Status(status),
            transaction,
            flags: HeaderFlags::from_bits_retain(flags),
            body: &body,
        };
        let mut bytes = message.emit().unwrap();
        bytes.resize(bytes.len() + padding, 0xAA);
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn bodies_come_back_as_they_were(
        framework in proptest::collection::vec(versions(), 0..50),
        message in proptest::collection::vec(versions(), 0..50),
        (force, reason, limit_seconds, sequence, state) in any::<(bool, u32, u32, u64, u32)>(),
        (host_time, reference) in any::<(u64, Option<u64>)>(),
        action in prop_oneof![
            Just(ShutdownAction::PowerOff),
            Just(ShutdownAction::Restart),
            Just(ShutdownAction::Hibernate),
        ],
        purpose in prop_oneof![
            Just(TimeSyncPurpose::Probe),
            Just(TimeSyncPurpose::Sync),
            Just(TimeSyncPurpose::Sample),
        ],
    ) {
        let list = Negotiate { framework, message };
        prop_assert_eq!(Negotiate::parse(&list.emit().unwrap()), Ok(list));
        let request = ShutdownRequest { action, force, reason, limit_seconds };
        prop_assert_eq!(ShutdownRequest::parse(&request.emit()), Ok(request));
        let beat = Heartbeat { sequence, state: ApplicationState(state) };
        prop_assert_eq!(Heartbeat::parse(&beat.emit()), Ok(beat));
        let version = Version::new(if reference.is_some() { 4 } else { 3 }, 0);
        let time = TimeSync { host_time, reference, purpose };
        prop_assert_eq!(TimeSync::parse(&time.emit(), version), Ok(time));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in versions()) {
        let _ = Message::parse(&bytes);
        let mut framed = vec![1, 0, 0, 0, bytes.len() as u8, 0, 0, 0];
        framed.extend(&bytes);
        let _ = Message::parse(&framed);
        if let Ok(list) = Negotiate::parse(&bytes) {
            prop_assert!(list.framework.len() + list.message.len() <= MAX_VERSIONS);
            let _ = list.choice();
        }
        let _ = ShutdownRequest::parse(&bytes);
        let _ = Heartbeat::parse(&bytes);
        let _ = TimeSync::parse(&bytes, version);
    }
}
