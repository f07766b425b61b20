/* SPDX-License-Identifier: Apache-2.0 */

/* Traces over the control socket: packets reach the client that asked, what is refused starts
 * nothing, and a client that does not read or goes away costs nobody anything.  Client,
 * server and packets take turns in one thread. */

#include <check.h>
#include <errno.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "datapath/ctl.h"
#include "datapath/trace.h"
#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

static struct rig r;
static char dir[64], sock[MOAT_PATH_MAX];
static struct moat_ctl_server *ctl;
static int client;
static struct frame frame;

static struct {
    struct moat_ctl_head head;
    _Alignas(8) uint8_t body[MOAT_CTL_MAX];
} msg;

static const struct moat_traced *const traced = (const void *)msg.body;

static void turn(void)
{
    moat_ctl_run_once(ctl, 0);
}

/* 1: a message is in msg.  0: none.  -1: the server hung up. */
static int receive(int from)
{
    struct iovec iov[2] = {{&msg.head, sizeof msg.head}, {msg.body, sizeof msg.body}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n = recvmsg(from, &m, MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        return -1;
    ck_assert_uint_eq(msg.head.len, (size_t)n - sizeof msg.head);
    if (msg.head.type == MOAT_CTL_TRACED) {
        ck_assert_uint_eq(msg.head.xid, 0);
        ck_assert_uint_eq(msg.head.len, sizeof *traced + traced->cap_len);
    }
    return 1;
}

/* Sends body and what follows it; returns the status of the answer. */
static int request(int to, unsigned type, const void *body, size_t len, const void *more,
                   size_t more_len)
{
    struct moat_ctl_head head = {
        .type = (uint16_t)type, .version = MOAT_CTL_VERSION, .len = (uint32_t)(len + more_len)};
    struct iovec iov[3] = {
        {&head, sizeof head}, {(void *)(uintptr_t)body, len}, {(void *)(uintptr_t)more, more_len}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 3};

    ck_assert_int_ge(sendmsg(to, &m, MSG_NOSIGNAL), 0);
    do {
        turn();
        ck_assert_int_eq(receive(to), 1);
    } while (msg.head.type != (type | MOAT_CTL_REPLY));
    if (msg.head.status)
        ck_assert_uint_gt(msg.head.len, 3); /* words */
    return msg.head.status;
}

static int trace(int to, const char *vnic, uint32_t snaplen, const char *filter)
{
    struct moat_ctl_trace ask = {.which = MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED,
                                 .snaplen = snaplen};
    pcap_t *dead = pcap_open_dead(DLT_EN10MB, 65535);
    struct bpf_program prog;
    int rc;

    snprintf(ask.vnic, sizeof ask.vnic, "%s", vnic);
    ck_assert_int_eq(pcap_compile(dead, &prog, filter, 1, PCAP_NETMASK_UNKNOWN), 0);
    ask.n_insns = prog.bf_len;
    rc = request(to, MOAT_CTL_TRACE, &ask, sizeof ask, prog.bf_insns,
                 prog.bf_len * sizeof *prog.bf_insns);
    pcap_freecode(&prog);
    pcap_close(dead);
    return rc;
}

static int connect_client(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    uint32_t version = MOAT_CTL_VERSION;

    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    turn();
    ck_assert_int_eq(request(fd, MOAT_CTL_HELLO, &version, sizeof version, NULL, 0), 0);
    return fd;
}

static void hang_up(int fd)
{
    close(fd);
    turn();
}

/* n packets of slot 0, refused by a rule. */
static void packets(unsigned n)
{
    struct moat_thread *t = moat_thread_self(r.e);

    for (unsigned i = 0; i < n; i++) {
        struct moat_pkt p = {.data = frame.data,
                             .len = frame.len,
                             .total = frame.len,
                             .by = MOAT_BY_RULE,
                             .reason = MOAT_R_DEFAULT};

        moat_qsbr_enter(&r.e->qsbr, t->reader);
        if (__atomic_load_n(&r.e->traces, __ATOMIC_ACQUIRE))
            moat_trace_burst(t, r.e->slots[0].view, MOAT_FROM_VM, &p, 1, 0);
        moat_qsbr_leave(t->reader);
    }
}

static void setup(void)
{
    struct moat_ctl_conf conf = {.uid = getuid()};
    char err[256] = "";

    rig_start(&r, NULL, "policy \"t\" version 1\ndefault drop\n");
    snprintf(dir, sizeof dir, "/tmp/moat-trace-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(sock, sizeof sock, "%s/moat.ctl", dir);
    conf.engine = r.e;
    conf.path = sock;
    ctl = moat_ctl_create(&conf, err, sizeof err);
    ck_assert_msg(ctl != NULL, "%s", err);
    client = connect_client();
    frame_eth(&frame, rig_mac[1], rig_mac[0]);
    frame_ip4(&frame, rig_ip4[0], rig_ip4[1], 17);
    frame_udp(&frame, 1000, 53);
    frame_data(&frame, 1000);
    frame_end(&frame);
}

static void teardown(void)
{
    close(client);
    moat_ctl_destroy(ctl);
    ck_assert_ptr_null(r.e->traces);
    rig_destroy(&r);
    rmdir(dir);
}

START_TEST(packets_reach_who_asked)
{
    int other = connect_client();

    ck_assert_int_eq(trace(client, "", 100, "udp"), 0);
    ck_assert_int_eq(trace(other, rig_vnic[0], 0, "tcp"), 0);
    packets(3);
    turn();
    for (uint64_t seq = 1; seq <= 3; seq++) {
        ck_assert_int_eq(receive(client), 1);
        ck_assert_uint_eq(msg.head.type, MOAT_CTL_TRACED);
        ck_assert_uint_eq(traced->seq, seq);
        ck_assert_uint_eq(traced->reason, MOAT_R_DEFAULT);
        ck_assert_str_eq(traced->vnic, rig_vnic[0]);
        ck_assert_uint_eq(traced->cap_len, 100);
        ck_assert_uint_eq(traced->frame_len, frame.len);
        ck_assert_mem_eq(traced + 1, frame.data, 100);
    }
    ck_assert_int_eq(receive(client), 0);
    ck_assert_int_eq(receive(other), 0);
    /* It may ask other things meanwhile, but not for another trace. */
    ck_assert_int_eq(request(client, MOAT_CTL_SUBSCRIBE, NULL, 0, NULL, 0), 0);
    ck_assert_int_eq(trace(client, "", 0, "udp"), -EBUSY);
    packets(1);
    turn();
    do
        ck_assert_int_eq(receive(client), 1);
    while (msg.head.type == MOAT_CTL_EVENT);
    ck_assert_uint_eq(traced->seq, 4);
    hang_up(other);
}
END_TEST

START_TEST(what_is_refused_starts_nothing)
{
    static const struct moat_trace_insn end = {BPF_RET, 0, 0, 1};
    static const struct moat_trace_insn loop[2] = {{BPF_JMP | BPF_JA, 0, 0, UINT32_MAX},
                                                   {BPF_RET, 0, 0, 1}};
    static uint8_t more[(MOAT_TRACE_INSNS_MAX + 1) * sizeof end];
    struct moat_ctl_trace ask = {.which = MOAT_TRACE_PASSED, .n_insns = 1}, bad;

    /* Every length but the right one. */
    for (size_t n = 0; n < 3 * sizeof end; n++)
        if (n != sizeof end)
            ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &ask, sizeof ask, more, n), -EBADMSG);
    bad = ask;
    bad.n_insns = MOAT_TRACE_INSNS_MAX + 1;
    ck_assert_int_lt(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, more, sizeof more), 0);
    bad.n_insns = UINT32_MAX;
    ck_assert_int_lt(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, more, sizeof more), 0);
    bad.n_insns = 1u << 29; /* times the size of one: 0 in 32 bits */
    ck_assert_int_lt(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, NULL, 0), 0);
    bad = ask;
    memset(bad.vnic, 'a', sizeof bad.vnic);
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, &end, sizeof end), -EINVAL);
    bad = ask;
    memcpy(bad.vnic, "nobody", 7);
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, &end, sizeof end), -ENOENT);
    bad = ask;
    bad.which = 0;
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, &end, sizeof end), -EINVAL);
    bad = ask;
    bad.snaplen = MOAT_TRACE_SNAPLEN_MAX + 1;
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, &end, sizeof end), -EINVAL);
    bad = ask;
    bad.n_insns = 2;
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &bad, sizeof bad, loop, sizeof loop), -EINVAL);
    ck_assert_ptr_null(r.e->traces);
    ck_assert_int_eq(request(client, MOAT_CTL_TRACE, &ask, sizeof ask, &end, sizeof end), 0);
    ck_assert_ptr_nonnull(r.e->traces);
}
END_TEST

START_TEST(a_trace_ends_with_its_client)
{
    int fds[MOAT_TRACES_MAX + 1];

    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MOAT_TRACES_MAX; i++) {
            fds[i] = connect_client();
            ck_assert_int_eq(trace(fds[i], "", 0, "udp"), 0);
        }
        fds[MOAT_TRACES_MAX] = connect_client();
        ck_assert_int_eq(trace(fds[MOAT_TRACES_MAX], "", 0, "udp"), -EUSERS);
        packets(10);
        for (unsigned i = 0; i <= MOAT_TRACES_MAX; i++) {
            hang_up(fds[(i + round) % (MOAT_TRACES_MAX + 1)]);
            packets(1);
        }
        ck_assert_ptr_null(r.e->traces);
    }
}
END_TEST

/* What it does not take is lost, and said so by the gap; another client gets all of its own. */
START_TEST(a_client_that_does_not_read)
{
    int other = connect_client();
    uint64_t seq = 0, n = 0, got = 0;

    ck_assert_int_eq(trace(client, "", MOAT_TRACE_SNAPLEN_MAX, "udp"), 0);
    ck_assert_int_eq(trace(other, "", 0, "udp"), 0);
    for (unsigned i = 0; i < 40; i++) {
        packets(100);
        turn();
        for (; receive(other) > 0; got++)
            ck_assert_uint_eq(traced->seq, got + 1);
    }
    ck_assert_uint_eq(got, 4000);
    ck_assert_uint_gt(rig_counter(&r, 0, MOAT_C_TRACE_LOST), 0);
    for (bool more = true; more; turn()) {
        more = false;
        while (receive(client) > 0) {
            ck_assert_uint_gt(traced->seq, seq);
            seq = traced->seq;
            more = true;
            n++;
        }
    }
    ck_assert_uint_gt(n, MOAT_TRACE_CELLS); /* the ring, and what the socket held */
    ck_assert_uint_eq(n + rig_counter(&r, 0, MOAT_C_TRACE_LOST), 4000);
    packets(1);
    turn();
    ck_assert_int_eq(receive(client), 1);
    ck_assert_uint_eq(traced->seq, 4001);
    hang_up(other);
}
END_TEST

/* The server leaves first. */
START_TEST(the_server_stops)
{
    struct moat_ctl_conf conf = {.engine = r.e, .path = sock, .uid = getuid()};
    char err[256];

    ck_assert_int_eq(trace(client, "", 0, "udp"), 0);
    packets(10);
    moat_ctl_destroy(ctl);
    ck_assert_ptr_null(r.e->traces);
    ck_assert_int_eq(receive(client), -1);
    ctl = moat_ctl_create(&conf, err, sizeof err);
    ck_assert_ptr_nonnull(ctl);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {packets_reach_who_asked, what_is_refused_starts_nothing,
                                  a_trace_ends_with_its_client, a_client_that_does_not_read,
                                  the_server_stops};
    Suite *s = suite_create("ctl_trace");
    TCase *t = tcase_create("socket");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
