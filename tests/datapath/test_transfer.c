/* SPDX-License-Identifier: Apache-2.0 */

/* Sessions leave one engine as records and go on in another. */

#include "datapath/transfer.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

#define N_FLOWS 1500

static const char policy[] = "policy \"t\" version 1\n"
                             "service s = tcp 80, udp 53\n"
                             "tier main { allow from vm \"a\" to vm \"b\" service s }\n"
                             "default drop\n";

static _Alignas(8) uint8_t buf[MOAT_CTL_MAX];

static struct frame tcp(unsigned from, unsigned to, uint16_t sport, uint16_t dport, uint32_t seq,
                        uint32_t ack, uint8_t flags, uint32_t len)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 6);
    frame_tcp(&f, sport, dport, seq, ack, flags, 8192);
    frame_data(&f, len);
    frame_end(&f);
    return f;
}

static struct frame udp6(unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip6(&f, rig_ip6[from], rig_ip6[to], 17);
    frame_udp(&f, sport, dport);
    frame_end(&f);
    return f;
}

static bool push(struct rig *r, unsigned slot, enum moat_dir dir, struct frame f)
{
    return rig_push(r, slot, dir, f.data, f.len, NULL);
}

/* TCP connections and IPv6 UDP flows, as slot 1 (the VM "b") sees them. */
static void open_flows(struct rig *r)
{
    for (uint16_t i = 0; i < N_FLOWS; i++) {
        if (i % 3) {
            ck_assert(push(r, 1, MOAT_TO_VM, tcp(0, 1, 1000 + i, 80, 100, 0, MOAT_TCP_SYN, 0)));
            ck_assert(push(r, 1, MOAT_FROM_VM,
                           tcp(1, 0, 80, 1000 + i, 500, 101, MOAT_TCP_SYN | MOAT_TCP_ACK, 0)));
            ck_assert(push(r, 1, MOAT_TO_VM, tcp(0, 1, 1000 + i, 80, 101, 501, MOAT_TCP_ACK, 0)));
        } else {
            ck_assert(push(r, 1, MOAT_TO_VM, udp6(0, 1, 1000 + i, 53)));
        }
    }
}

/* All sessions of slot 1, as frames; returns how many. */
static uint32_t dump(struct rig *r, uint64_t since_s, uint8_t **frames, size_t *len)
{
    struct moat_ctl_sessions ask = {.since_s = since_s};
    struct moat_ctl_sessions_reply *reply = (void *)buf;
    uint32_t n = 0;

    *frames = NULL;
    *len = 0;
    snprintf(ask.vnic, sizeof ask.vnic, "%s", rig_vnic[1]);
    do {
        int got = moat_transfer_export(r->e, &ask, buf, sizeof buf);
        size_t more = (size_t)got - sizeof *reply;

        ck_assert_int_ge(got, (int)sizeof *reply);
        *frames = realloc(*frames, *len + more + 1);
        memcpy(*frames + *len, reply + 1, more);
        *len += more;
        n += reply->n;
        ask.cursor = reply->cursor;
    } while (ask.cursor);
    return n;
}

static int import(struct rig *r, uint32_t n, const uint8_t *frames, size_t len, bool same_policy,
                  struct moat_ctl_import_reply *reply)
{
    struct moat_ctl_import head = {.n = n, .same_policy = same_policy};
    char err[256];

    snprintf(head.vnic, sizeof head.vnic, "%s", rig_vnic[1]);
    return moat_transfer_import(r->e, &head, frames, len, reply, err, sizeof err);
}

static void set_state(struct rig *r, enum moat_slot_state state)
{
    struct moat_ctl_state st = {.state = (uint8_t)state};
    char err[256];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[1]);
    ck_assert_int_eq(moat_slot_set_state(r->e, &st, err, sizeof err), 0);
}

START_TEST(sessions_go_on_elsewhere)
{
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    uint8_t *frames;
    size_t len;

    rig_start(&a, NULL, policy);
    rig_start(&b, NULL, policy);
    open_flows(&a);
    ck_assert_uint_eq(dump(&a, 0, &frames, &len), N_FLOWS);
    ck_assert_int_eq(import(&b, N_FLOWS, frames, len, true, &reply), -EBUSY); /* not arriving */
    set_state(&b, MOAT_SLOT_ARRIVING);
    ck_assert_int_eq(import(&b, N_FLOWS, frames, len, _i, &reply), 0);
    ck_assert_uint_eq(reply.accepted, N_FLOWS);
    ck_assert_uint_eq(reply.refused, 0);
    set_state(&b, MOAT_SLOT_ACTIVE);
    for (uint16_t i = 0; i < N_FLOWS; i++) {
        if (i % 3) { /* the first packet after the move goes either way */
            if (i % 2)
                ck_assert(
                    push(&b, 1, MOAT_FROM_VM, tcp(1, 0, 80, 1000 + i, 501, 101, MOAT_TCP_ACK, 10)));
            ck_assert(push(&b, 1, MOAT_TO_VM, tcp(0, 1, 1000 + i, 80, 101, 501, MOAT_TCP_ACK, 7)));
        } else {
            ck_assert(push(&b, 1, MOAT_FROM_VM, udp6(1, 0, 53, 1000 + i)));
        }
    }
    ck_assert_uint_eq(rig_counter(&b, 1, MOAT_C_SESSIONS_REJUDGED), _i ? 0 : N_FLOWS);
    ck_assert_uint_eq(rig_counter(&b, 1, MOAT_C_SESSIONS_CREATED), 0);
    /* Without import the connection is unknown. */
    ck_assert(!push(&a, 0, MOAT_FROM_VM, tcp(0, 1, 1001, 80, 101, 501, MOAT_TCP_ACK, 7)));
    free(frames);
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

START_TEST(rounds_send_what_has_changed_and_the_later_record_wins)
{
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    uint8_t *frames;
    size_t len;

    rig_start(&a, NULL, policy);
    rig_start(&b, NULL, policy);
    open_flows(&a);
    set_state(&b, MOAT_SLOT_ARRIVING);
    ck_assert_uint_eq(dump(&a, 0, &frames, &len), N_FLOWS);
    ck_assert_int_eq(import(&b, N_FLOWS, frames, len, true, &reply), 0);
    free(frames);
    rig_clock_ms += 5000;
    ck_assert(push(&a, 1, MOAT_TO_VM, tcp(0, 1, 1001, 80, 101, 501, MOAT_TCP_ACK, 1000)));
    ck_assert_uint_eq(dump(&a, rig_clock_ms / 1000, &frames, &len), 1);
    ck_assert_int_eq(import(&b, 1, frames, len, true, &reply), 0);
    ck_assert_uint_eq(reply.accepted, 1);
    free(frames);
    ck_assert_uint_eq(dump(&b, 0, &frames, &len), N_FLOWS);
    free(frames);
    set_state(&b, MOAT_SLOT_ACTIVE);
    ck_assert(push(&b, 1, MOAT_FROM_VM, tcp(1, 0, 80, 1001, 501, 1101, MOAT_TCP_ACK, 10)));
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

/* Every byte of a record matters: a flipped bit is refused and changes nothing. */
START_TEST(damaged_records_are_refused)
{
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    uint8_t *frames, *bad;
    size_t len;

    rig_start(&a, NULL, policy);
    rig_start(&b, NULL, policy);
    ck_assert(push(&a, 1, MOAT_TO_VM, tcp(0, 1, 1000, 80, 100, 0, MOAT_TCP_SYN, 0)));
    ck_assert_uint_eq(dump(&a, 0, &frames, &len), 1);
    ck_assert_uint_eq(len, 4 + MOAT_SES_LEN4);
    set_state(&b, MOAT_SLOT_ARRIVING);
    for (size_t i = 0; i < len; i++) {
        int rc;

        bad = malloc(len);
        memcpy(bad, frames, len);
        bad[i] ^= 0x41;
        rc = import(&b, 1, bad, len, true, &reply);
        ck_assert(rc == -EINVAL || (rc == 0 && reply.refused == 1 && reply.accepted == 0));
        free(bad);
    }
    for (size_t n = 0; n < len; n++) {
        bad = malloc(n + 1);
        memcpy(bad, frames, n);
        ck_assert_int_eq(import(&b, 1, bad, n, true, &reply), -EINVAL);
        free(bad);
    }
    ck_assert_int_eq(import(&b, 0, frames, len, true, &reply), -EINVAL);
    ck_assert_int_eq(import(&b, UINT32_MAX, frames, len, true, &reply), -EINVAL);
    ck_assert_uint_eq(rig_counter(&b, 1, MOAT_C_SESSIONS_IMPORTED), 0);
    ck_assert_int_eq(import(&b, 1, frames, len, true, &reply), 0);
    ck_assert_uint_eq(reply.accepted, 1);
    free(frames);
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

/* What the new host's policy does not admit is cut there. */
START_TEST(another_policy_judges_again)
{
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    uint8_t *frames;
    size_t len;

    rig_start(&a, NULL, policy);
    rig_start(&b, NULL,
              "policy \"t\" version 1\nservice s = udp 53\n"
              "tier main { allow from vm \"a\" to vm \"b\" service s }\ndefault drop\n");
    open_flows(&a);
    dump(&a, 0, &frames, &len);
    set_state(&b, MOAT_SLOT_ARRIVING);
    ck_assert_int_eq(import(&b, N_FLOWS, frames, len, false, &reply), 0);
    set_state(&b, MOAT_SLOT_ACTIVE);
    ck_assert(push(&b, 1, MOAT_FROM_VM, udp6(1, 0, 53, 1000)));
    ck_assert(!push(&b, 1, MOAT_FROM_VM, tcp(1, 0, 80, 1001, 501, 101, MOAT_TCP_ACK, 10)));
    free(frames);
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

/* The policy changed at the source, and a session has not met it yet: the same policy at the
 * destination must judge it, though it is "the same". */
START_TEST(what_was_not_judged_again_yet_is_judged_there)
{
    static const char stricter[] = "policy \"t\" version 1\nservice s = udp 53\n"
                                   "tier main { allow from vm \"a\" to vm \"b\" service s }\n"
                                   "default drop\n";
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    uint8_t *frames;
    size_t len;

    rig_start(&a, NULL, policy);
    rig_start(&b, NULL, stricter);
    open_flows(&a);
    rig_publish(&a, 1, stricter);
    ck_assert(push(&a, 1, MOAT_FROM_VM, udp6(1, 0, 53, 1000))); /* this one met it */
    dump(&a, 0, &frames, &len);
    set_state(&b, MOAT_SLOT_ARRIVING);
    ck_assert_int_eq(import(&b, N_FLOWS, frames, len, true, &reply), 0);
    set_state(&b, MOAT_SLOT_ACTIVE);
    ck_assert(push(&b, 1, MOAT_FROM_VM, udp6(1, 0, 53, 1000)));
    ck_assert_uint_eq(rig_counter(&b, 1, MOAT_C_SESSIONS_REJUDGED), 0);
    ck_assert(push(&b, 1, MOAT_FROM_VM, udp6(1, 0, 53, 1003)));
    ck_assert(!push(&b, 1, MOAT_FROM_VM, tcp(1, 0, 80, 1001, 501, 101, MOAT_TCP_ACK, 10)));
    ck_assert_uint_eq(rig_counter(&b, 1, MOAT_C_SESSIONS_REJUDGED), 2);
    free(frames);
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

/* A query that was answered by an error ends sooner, there too. */
START_TEST(an_error_that_came_back_is_remembered)
{
    static const char ping[] =
        "policy \"t\" version 1\ntier main { allow from vm \"b\" to vm \"a\" "
        "service icmp echo-request }\ndefault drop\n";
    struct moat_ctl_import_reply reply;
    struct rig a, b;
    struct frame request, answer, error;
    uint8_t *frames;
    size_t len;

    rig_start(&a, NULL, ping);
    rig_start(&b, NULL, ping);
    frame_eth(&request, rig_mac[0], rig_mac[1]);
    frame_ip4(&request, rig_ip4[1], rig_ip4[0], 1);
    frame_icmp(&request, 8, 0, 7);
    frame_end(&request);
    frame_eth(&answer, rig_mac[1], rig_mac[0]);
    frame_ip4(&answer, rig_ip4[0], rig_ip4[1], 1);
    frame_icmp(&answer, 0, 0, 7);
    frame_end(&answer);
    frame_eth(&error, rig_mac[1], rig_mac[0]);
    frame_ip4(&error, rig_ip4[0], rig_ip4[1], 1);
    frame_icmp(&error, 11, 0, 0);
    frame_bytes(&error, request.data + request.ip_off, 28);
    frame_end(&error);
    ck_assert(push(&a, 1, MOAT_FROM_VM, request));
    if (_i)
        ck_assert(push(&a, 1, MOAT_TO_VM, error));
    dump(&a, 0, &frames, &len);
    set_state(&b, MOAT_SLOT_ARRIVING);
    ck_assert_int_eq(import(&b, 1, frames, len, true, &reply), 0);
    ck_assert_uint_eq(reply.accepted, 1);
    set_state(&b, MOAT_SLOT_ACTIVE);
    rig_clock_ms += 12000; /* icmp-error 10 s, icmp 20 s */
    ck_assert(push(&b, 1, MOAT_TO_VM, answer) == !_i);
    free(frames);
    rig_destroy(&a);
    rig_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("transfer");
    TCase *tc = tcase_create("records");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, sessions_go_on_elsewhere, 0, 2);
    tcase_add_test(tc, rounds_send_what_has_changed_and_the_later_record_wins);
    tcase_add_test(tc, damaged_records_are_refused);
    tcase_add_test(tc, another_policy_judges_again);
    tcase_add_test(tc, what_was_not_judged_again_yet_is_judged_there);
    tcase_add_loop_test(tc, an_error_that_came_back_is_remembered, 0, 2);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
