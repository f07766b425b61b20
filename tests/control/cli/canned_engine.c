/* SPDX-License-Identifier: Apache-2.0 */
/* Something to talk to on a control socket: the answers of an engine with three
 * slots, written down.  Serves clients until it is killed.
 *
 *   canned_engine SOCKET [GENERATION [MODE [FILE]]]
 *
 * GENERATION is that of its rulesets, FILE what it says that it was loaded from.  MODE: "hostile"
 * fills names with control characters and leaves out NULs, "short" cuts every answer but HELLO,
 * "silent" answers HELLO only, "refuse" refuses all but HELLO, "gone" hangs up behind the packets
 * of a trace, "old" speaks an older version and answers REPLACE only, "exchange" is replaced by
 * another one behind the events.  The first request of a trace is written to SOCKET.asked as text.
 *
 * What comes of REPLACE depends on the file: "abi" and "bad" are refused as what no
 * engine is, or none for this loader, "busy" for a while; "lost" hangs up, "late" waits for a file
 * SOCKET.go, "restart" ends with another process; with all others the next engine serves. */

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "moat/ctl.h"
#include "moat/session.h"

static uint64_t generation;
static const char *mode = "", *sock_path;

/* Of all its processes. */
static struct {
    uint32_t replacements, pid;
    char file[MOAT_FILE_MAX]; /* that was asked for last */
} * shared;

static uint8_t body[MOAT_CTL_MAX - sizeof(struct moat_ctl_head)];
static size_t len;

static void put(const void *p, size_t n)
{
    if (n > sizeof body - len)
        abort();
    memcpy(body + len, p, n);
    len += n;
}

static void name(char *field, size_t size, const char *text)
{
    if (!strcmp(mode, "hostile"))
        memset(field, '\x1b', size); /* no NUL either */
    else
        snprintf(field, size, "%s", text);
}

static void hello(void)
{
    struct moat_ctl_hello h = {.version = MOAT_CTL_VERSION,
                               .pid = shared->pid,
                               .n_slots = 256,
                               .slots_used = 3,
                               .n_ports = 4,
                               .sessions_max = 1000000,
                               .sessions_used = 4,
                               .layout_version = 1,
                               .now_s = 10000,
                               .started_s = 9875,
                               .events_lost = 5,
                               .recovered_slots = 1,
                               .recovered_sessions = 2,
                               .replacements = shared->replacements,
                               .gate_us = shared->replacements ? 34 : 0};

    name(h.engine, sizeof h.engine, shared->replacements ? "0.2.0-canned" : "0.1.0-canned");
    name(h.file, sizeof h.file, shared->file);
    name(h.mapping, sizeof h.mapping, "/dev/hugepages/moat");
    put(&h, sizeof h);
}

static const struct {
    const char *vnic, *vm;
    uint8_t state;
    bool running;
} slots[] = {
    {"web-0", "web", MOAT_SLOT_ACTIVE, true},
    {"db-0", "db", MOAT_SLOT_ACTIVE, true},
    {"db-1", "db", MOAT_SLOT_BLOCKED, false},
};

#define N_SLOTS (sizeof slots / sizeof *slots)

/* Nothing as it is by default. */
static void enroll(struct moat_slot_info *s)
{
    struct moat_settings *t = &s->conf.settings;

    s->state = MOAT_SLOT_ENROLLING;
    s->enroll_left_s = 431;
    s->half_open = 5;
    s->n_learnt = 1;
    s->learnt[0] = (struct moat_addr){.family = 4, .plen = 32, .addr = {10, 0, 0, 77}};
    t->spoof = MOAT_SPOOF_LEARN;
    t->vlan = MOAT_VLAN_INSPECT;
    t->tcp_loose = 1;
    t->ra_guard = t->dhcp_guard = t->transfer_sessions = 0;
    t->n_ethertypes = 2;
    t->ethertypes[0] = 0x88cc;
    t->ethertypes[1] = 0x88f7;
    t->pickup_s = 9;
    t->hold_ms = 8;
    t->enroll_s = 600;
    t->max_sessions = 1;
    t->max_half_open = 2;
    t->max_new = 3;
    t->max_fragments = 4;
    t->max_logs = 5;
    t->timers[MOAT_T_TCP_ESTABLISHED] = 7200;
    t->timers[MOAT_T_ICMP] = moat_timer_default(MOAT_T_ICMP);
}

/* One slot per answer: the client must go on. */
static void slot_list(uint32_t first)
{
    struct moat_ctl_list_reply r = {.n = first < N_SLOTS,
                                    .next = first + 1 < N_SLOTS ? first + 1 : 0};
    struct moat_slot_info s = {.index = first, .connected = 1, .sessions = 2};

    put(&r, sizeof r);
    if (first >= N_SLOTS)
        return;
    moat_settings_init(&s.conf.settings);
    name(s.conf.vnic, sizeof s.conf.vnic, slots[first].vnic);
    name(s.conf.vm, sizeof s.conf.vm, slots[first].vm);
    name(s.conf.network, sizeof s.conf.network, "blue");
    name(s.conf.path, sizeof s.conf.path, "/run/vm.sock");
    s.conf.mac[0] = 0x52;
    s.conf.n_addrs = strcmp(mode, "hostile") ? 2 : 255;
    s.conf.addrs[0] = (struct moat_addr){.family = 4, .plen = 32, .addr = {10, 0, 0, 5}};
    s.conf.addrs[1] = (struct moat_addr){.family = 6, .plen = 64, .addr = {0xfd}};
    s.conf.epoch = 3;
    s.state = strcmp(mode, "hostile") ? slots[first].state : 200;
    if (!strcmp(mode, "enrolling") && first == 0)
        enroll(&s);
    if (!strcmp(mode, "hostile")) {
        s.n_learnt = s.conf.settings.n_ethertypes = 255;
        s.conf.settings.spoof = MOAT_SPOOF_LEARN;
    }
    s.running = slots[first].running;
    s.has_port = 1;
    s.has_ruleset = s.state != MOAT_SLOT_BLOCKED;
    s.n_rules = 10;
    s.serial = 2;
    s.generation = generation;
    memset(s.digest, 0xab, sizeof s.digest);
    put(&s, sizeof s);
}

static void port_list(void)
{
    struct moat_ctl_list_reply r = {.n = 2};
    struct moat_port_info p[2] = {{.claimed = 1, .connected = 1}, {.connected = 1}};

    name(p[0].path, sizeof p[0].path, "/run/vm.sock");
    name(p[0].vnic, sizeof p[0].vnic, "web-0");
    name(p[1].path, sizeof p[1].path, "/run/nobody.sock");
    put(&r, sizeof r);
    put(p, sizeof p);
}

static const struct moat_ses_rec records[] = {
    {.family = 4,
     .proto = 6,
     .dir = MOAT_TO_VM,
     .flags = MOAT_SES_F_REPLIED | MOAT_SES_F_IMPORTED,
     .lport = 5432,
     .rport = 40000,
     .rule = 1,
     .age_s = 125,
     .idle_s = 3,
     .packets = {10, 12},
     .bytes = {1000, 123456},
     .side = {{.state = 2}, {.state = 2}},
     .local = {10, 0, 0, 6},
     .remote = {10, 0, 0, 5}},
    {.family = 4,
     .proto = 6,
     .dir = MOAT_FROM_VM,
     .lport = 40001,
     .rport = 80,
     .age_s = 1,
     .side = {{.state = 1}, {.state = 0}},
     .local = {10, 0, 0, 6},
     .remote = {192, 0, 2, 1}},
    {.family = 6,
     .proto = 17,
     .dir = MOAT_FROM_VM,
     .flags = MOAT_SES_F_FAIL_OPEN,
     .lport = 5353,
     .rport = 53,
     .side = {{.state = 2}, {.state = 9}},
     .local = {0xfd, [15] = 6},
     .remote = {0xfd, [15] = 1}},
    {.family = 4,
     .proto = 1,
     .dir = MOAT_FROM_VM,
     .lport = 77,
     .rport = 77,
     .local = {10, 0, 0, 6},
     .remote = {10, 0, 0, 5}},
};

#define N_RECORDS (sizeof records / sizeof *records)

static void put_record(struct moat_ses_rec r)
{
    uint8_t frame[MOAT_SES_FRAME_MAX];
    unsigned n = moat_ses_encode(&r, frame + 4);

    moat_put_be(frame, XXH32(frame + 4, n, MOAT_SES_MAGIC), 4);
    put(frame, n + 4);
}

/* db-0 has sessions, two per page. */
static void sessions(const struct moat_ctl_sessions *ask)
{
    uint32_t left = ask->cursor < N_RECORDS ? N_RECORDS - ask->cursor : 0, n = left < 2 ? left : 2;
    struct moat_ctl_sessions_reply r = {.now_s = 10000};

    if (*ask->vnic && strncmp(ask->vnic, "db-0", sizeof ask->vnic) && strcmp(mode, "hostile"))
        n = left = 0;
    r.n = n;
    r.cursor = left > n ? ask->cursor + n : 0;
    name(r.vnic, sizeof r.vnic, "db-0");
    put(&r, sizeof r);
    for (uint32_t i = 0; i < n; i++) {
        struct moat_ses_rec rec = records[ask->cursor + i];

        rec.generation = generation;
        put_record(rec);
    }
}

static void counters(void)
{
    uint64_t c[MOAT_N_COUNTERS] = {[MOAT_C_FROM_VM_PKTS] = 12345678, [MOAT_C_TO_VM_PKTS] = 7};

    c[MOAT_C_DROP(MOAT_TO_VM, MOAT_R_TCP_NO_SESSION)] = 42;
    c[MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_SPOOF_IP)] = UINT64_MAX;
    put(c, sizeof c);
}

static void rule_hits(void)
{
    struct moat_ctl_list_reply r = {.n = 3};
    struct moat_rule_hit h[] = {
        {.rule = 0, .hits = 9}, {.rule = 1, .hits = 4}, {.rule = 4000000000u, .hits = 1}};

    put(&r, sizeof r);
    put(h, sizeof h);
}

static void send_reply(int fd, uint16_t type, uint32_t xid, int32_t status)
{
    struct moat_ctl_head head = {.type = type,
                                 .version = MOAT_CTL_VERSION - !strcmp(mode, "old"),
                                 .xid = xid,
                                 .status = status};
    uint8_t packet[MOAT_CTL_MAX];

    if (!strcmp(mode, "short") && type != (MOAT_CTL_HELLO | MOAT_CTL_REPLY))
        len /= 2;
    head.len = (uint32_t)len;
    memcpy(packet, &head, sizeof head);
    memcpy(packet + sizeof head, body, len);
    if (send(fd, packet, sizeof head + len, MSG_NOSIGNAL) < 0 && errno != EPIPE)
        perror("canned_engine: send");
}

static void send_events(int fd)
{
    struct moat_event e = {.seq = 1,
                           .time_us = 1700000000000000,
                           .type = MOAT_EV_PACKET,
                           .reason = MOAT_R_DEFAULT,
                           .generation = generation};

    e.flow = (struct moat_flow){.dir = MOAT_TO_VM,
                                .family = 4,
                                .proto = 6,
                                .sport = 40000,
                                .dport = 22,
                                .local = {10, 0, 0, 6},
                                .remote = {10, 0, 0, 5}};
    name(e.vnic, sizeof e.vnic, "db-0");
    len = 0;
    put(&e, sizeof e);
    send_reply(fd, MOAT_CTL_EVENT, 0, 0);
    memset(&e, 0, sizeof e);
    e.seq = 4; /* two are lost */
    e.time_us = 1700000001000000;
    e.type = strcmp(mode, "hostile") ? MOAT_EV_OPENED : 999;
    e.value = 12400;
    name(e.vnic, sizeof e.vnic, "web-0");
    name(e.text, sizeof e.text, "as it should be");
    len = 0;
    put(&e, sizeof e);
    send_reply(fd, MOAT_CTL_EVENT, 0, 0);
}

/* --- traces --- */

static const struct moat_traced packets[] = {
    {.seq = 1,
     .time_us = 1700000000000001,
     .frame_len = 74,
     .cap_len = 14,
     .rule = 1,
     .verdict = MOAT_ALLOW,
     .by = MOAT_BY_RULE,
     .slot_state = MOAT_SLOT_ACTIVE,
     .tcp_flags = 0x02,
     .has_session = 1,
     .session_dir = MOAT_TO_VM,
     .side_state = {0, 1},
     .packets = {0, 1},
     .bytes = {0, 74},
     .flow = {MOAT_TO_VM, 4, 6, 0, 40000, 5432, {10, 0, 0, 6}, {10, 0, 0, 5}}},
    {.seq = 2,
     .time_us = 1700000000000002,
     .frame_len = 1500,
     .cap_len = 14,
     .rule = 1,
     .verdict = MOAT_DROP,
     .reason = MOAT_R_TCP_WINDOW,
     .by = MOAT_BY_SESSION,
     .slot_state = MOAT_SLOT_ACTIVE,
     .tcp_flags = 0x18,
     .has_session = 1,
     .session_dir = MOAT_TO_VM,
     .session_flags = MOAT_SES_F_REPLIED,
     .side_state = {2, 2},
     .age_s = 125,
     .packets = {10, 12},
     .bytes = {1000, 123456},
     .flow = {MOAT_FROM_VM, 4, 6, 0, 5432, 40000, {10, 0, 0, 6}, {10, 0, 0, 5}}},
    /* three are lost */
    {.seq = 6,
     .time_us = 1700000000000003,
     .frame_len = 62,
     .cap_len = 14,
     .verdict = MOAT_REJECT,
     .reason = MOAT_R_DEFAULT,
     .by = MOAT_BY_RULE,
     .slot_state = MOAT_SLOT_ACTIVE,
     .vlan = 7,
     .flow = {MOAT_FROM_VM, 6, 17, 0, 5353, 53, {0xfd, [15] = 6}, {0xfd, [15] = 1}}},
    {.seq = 7,
     .time_us = 1700000000000004,
     .frame_len = 60,
     .cap_len = 14,
     .rule = 3,
     .verdict = MOAT_ALLOW,
     .reason = MOAT_R_RULE,
     .by = MOAT_BY_ENROLLING,
     .slot_state = MOAT_SLOT_ENROLLING,
     .flow = {MOAT_TO_VM, 4, 1, 0, 0, 8, {10, 0, 0, 6}, {10, 0, 0, 5}}},
    {.seq = 8,
     .time_us = 1700000000000005,
     .frame_len = 9,
     .cap_len = 9,
     .verdict = MOAT_DROP,
     .reason = MOAT_R_L2_SHORT,
     .by = MOAT_BY_CHECK,
     .slot_state = MOAT_SLOT_ACTIVE,
     .flow = {.dir = MOAT_FROM_VM}},
    {.seq = 9,
     .time_us = 1700000000000006,
     .frame_len = 42,
     .cap_len = 14,
     .rule = 2,
     .verdict = MOAT_ALLOW,
     .by = MOAT_BY_RULE,
     .slot_state = MOAT_SLOT_ACTIVE,
     .flow = {MOAT_TO_VM, MOAT_FAM_ARP, 0, 0, 0, 0, {10, 0, 0, 6}, {10, 0, 0, 5}}},
};

static void note_trace(const char *sock, const struct moat_ctl_trace *ask)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s.asked", sock);
    f = fopen(path, "a");
    if (f) {
        fprintf(f, "%.*s %u %u %u\n", MOAT_ID_MAX, ask->vnic, ask->n_insns, ask->snaplen,
                ask->which);
        fclose(f);
    }
}

/* All packets, whatever was asked for; as an engine would, not longer than snaplen. */
static void send_traced(int fd, const struct moat_ctl_trace *ask)
{
    static const uint8_t frame[14] = {0x52, 0, 0, 0, 0, 1, 0x52, 0, 0, 0, 0, 2, 0x88, 0xb5};

    for (size_t i = 0; i < sizeof packets / sizeof *packets; i++) {
        struct moat_traced t = packets[i];

        t.cap_len = t.cap_len < ask->snaplen ? t.cap_len : ask->snaplen;
        t.generation = generation;
        if (!strcmp(mode, "hostile")) {
            memset(&t.flow, 0xff, sizeof t.flow);
            memset(&t.verdict, 0xff,
                   offsetof(struct moat_traced, age_s) - offsetof(struct moat_traced, verdict));
            t.age_s = UINT32_MAX;
            t.time_us = UINT64_MAX;
            t.frame_len = UINT32_MAX;
            memset(t.packets, 0xff, sizeof t.packets);
        }
        name(t.vnic, sizeof t.vnic, i == 3 ? "web-0" : "db-0");
        len = 0;
        put(&t, sizeof t);
        put(frame, t.cap_len);
        send_reply(fd, MOAT_CTL_TRACED, 0, 0);
    }
    if (!strcmp(mode, "gone"))
        exit(0);
}

static void refuse(int fd, const struct moat_ctl_head *head, int status, const char *why)
{
    len = 0;
    put(why, strlen(why));
    send_reply(fd, head->type | MOAT_CTL_REPLY, head->xid, status);
}

/* Answers unless it hangs up. */
static void replace(int fd, const struct moat_ctl_head *head, const struct moat_ctl_replace *ask)
{
    struct moat_ctl_replaced r = {.prepare_ms = 1234, .gate_us = 34, .tries = 2};
    char go[256];
    const char *file = strrchr(ask->file, '/') ? strrchr(ask->file, '/') + 1 : ask->file;

    if (!strcmp(file, "bad") || !strcmp(file, "abi")) {
        refuse(fd, head, *file == 'b' ? -ENOEXEC : -EPROTONOSUPPORT, "not like this");
    } else if (!strcmp(file, "busy")) {
        refuse(fd, head, -EBUSY, "vNIC web-0 is being moved");
    } else if (!strcmp(file, "lost")) {
        exit(0);
    } else {
        snprintf(go, sizeof go, "%s.go", sock_path);
        while (!strcmp(file, "late") && access(go, F_OK))
            usleep(20000);
        shared->replacements++;
        shared->pid += !strcmp(file, "restart");
        if (*ask->file)
            snprintf(shared->file, sizeof shared->file, "%s", ask->file);
        name(r.engine, sizeof r.engine, "0.2.0-canned");
        put(&r, sizeof r);
        send_reply(fd, head->type | MOAT_CTL_REPLY, head->xid, 0);
        exit(0);
    }
}

/* Another engine takes over behind the events, says so, and has events of its own. */
static void exchange_behind_events(int fd)
{
    struct moat_event e = {.seq = 1, .type = MOAT_EV_REPLACED, .value = 34};
    bool is_first = !shared->replacements++;

    if (!is_first) {
        name(e.text, sizeof e.text, "engine 0.2.0-canned");
        len = 0;
        put(&e, sizeof e);
        send_reply(fd, MOAT_CTL_EVENT, 0, 0);
    }
    send_events(fd);
    if (is_first)
        exit(0);
}

static void answer(int fd, const struct moat_ctl_head *head, const uint8_t *ask, size_t n)
{
    struct moat_ctl_list list = {0};
    struct moat_ctl_sessions ses = {.cursor = 0};
    struct moat_ctl_trace trace = {.which = 0};
    struct moat_ctl_replace other = {.file = ""};

    len = 0;
    if (head->type != MOAT_CTL_REPLACE && !strcmp(mode, "old")) {
        refuse(fd, head, -EPROTONOSUPPORT, "this engine speaks an older version");
        return;
    }
    if (head->type != MOAT_CTL_HELLO && !strcmp(mode, "silent"))
        return;
    if (head->type != MOAT_CTL_HELLO && !strcmp(mode, "refuse")) {
        refuse(fd, head, -EPERM, "not \x1b[31mtoday");
        return;
    }
    switch (head->type) {
    case MOAT_CTL_HELLO:
        hello();
        break;
    case MOAT_CTL_SLOT_LIST:
        memcpy(&list, ask, n < sizeof list ? n : sizeof list);
        slot_list(list.first);
        break;
    case MOAT_CTL_PORT_LIST:
        port_list();
        break;
    case MOAT_CTL_SESSIONS:
        memcpy(&ses, ask, n < sizeof ses ? n : sizeof ses);
        sessions(&ses);
        break;
    case MOAT_CTL_COUNTERS:
        counters();
        break;
    case MOAT_CTL_RULE_HITS:
        rule_hits();
        break;
    case MOAT_CTL_TRACE:
        memcpy(&trace, ask, n < sizeof trace ? n : sizeof trace);
        note_trace(sock_path, &trace);
        break;
    case MOAT_CTL_REPLACE:
        memcpy(&other, ask, n < sizeof other ? n : sizeof other);
        replace(fd, head, &other);
        return;
    case MOAT_CTL_FLUSH:
    case MOAT_CTL_SUBSCRIBE:
        break;
    default:
        refuse(fd, head, -ENOSYS, "this engine is canned");
        return;
    }
    send_reply(fd, head->type | MOAT_CTL_REPLY, head->xid, 0);
    if (head->type == MOAT_CTL_SUBSCRIBE && !strcmp(mode, "exchange"))
        exchange_behind_events(fd);
    else if (head->type == MOAT_CTL_SUBSCRIBE)
        send_events(fd);
    if (head->type == MOAT_CTL_TRACE)
        send_traced(fd, &trace);
}

static void serve(int fd)
{
    uint8_t packet[MOAT_CTL_MAX];
    ssize_t n;

    while ((n = recv(fd, packet, sizeof packet, 0)) >= (ssize_t)sizeof(struct moat_ctl_head)) {
        struct moat_ctl_head head;

        memcpy(&head, packet, sizeof head);
        answer(fd, &head, packet + sizeof head, (size_t)n - sizeof head);
    }
    close(fd);
}

int main(int argc, char **argv)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (argc < 2 || strlen(argv[1]) >= sizeof sun.sun_path) {
        fprintf(stderr, "usage: canned_engine SOCKET [GENERATION [MODE [FILE]]]\n");
        return 2;
    }
    generation = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    mode = argc > 3 ? argv[3] : "";
    strcpy(sun.sun_path, argv[1]);
    sock_path = argv[1];
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("canned_engine");
        return 1;
    }
    shared->pid = 4711;
    snprintf(shared->file, sizeof shared->file, "%s",
             argc > 4 ? argv[4] : "/usr/lib/moat/libmoat-engine.so");
    signal(SIGCHLD, SIG_IGN);
    unlink(argv[1]);
    if (s < 0 || bind(s, (struct sockaddr *)&sun, sizeof sun) || listen(s, 8)) {
        perror("canned_engine");
        return 1;
    }
    for (;;) {
        int fd = accept(s, NULL, NULL);

        /* One process for each client: some have several connections. */
        if (fd >= 0 && !fork()) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            serve(fd);
            exit(0);
        }
        close(fd);
    }
}
