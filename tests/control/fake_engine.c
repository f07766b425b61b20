/* SPDX-License-Identifier: Apache-2.0 */

/* A fast path without packets, for tests of its clients only: speaks moat/ctl.h,
 * keeps slots, ports and sessions in plain arrays, and does what a test says.
 *
 *   fake_engine CTL CMD          serves the control socket CTL, obeys at socket CMD
 *   fake_engine -c CMD WORD...   says one command and prints the answer
 *
 * Commands: port PATH, replug PATH, unplug PATH, connect PATH, disconnect PATH,
 * log PATH on|off, start PATH, stop PATH, sessions VNIC N, slot VNIC, slots,
 * count VNIC, corrupt VNIC (takes its ruleset away), enrolled VNIC N (its enrolment ends, N
 * packets would have been refused), learnt VNIC, quota VNIC (of half-open sessions), replace
 * (another engine takes over: all connections end; it also answers a request for /slow),
 * replace-at TYPE (the same in place of an answer to the next request of that type), quit.
 * A ruleset for a slot in quarantine ends all sessions of the slot.  A request to replace it by
 * /bad is refused. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "moat/ctl.h"
#include "moat/ruleset.h"
#include "moat/session.h"

#define MAX 64
#define MAX_SESSIONS 200000
#define SILENT_MS 2000

struct port {
    char path[MOAT_PATH_MAX];
    bool connected, running, logging, replugged;
};

struct slot {
    bool used, ready, unplugged, precopy, expired, handed_over;
    struct moat_slot_conf conf;
    uint8_t state;
    uint64_t epoch;
    uint32_t serial, wait_ms, pickup_s;
    int64_t hold_from, frozen_at, enroll_until;
    uint8_t *blob;
    size_t blob_len;
};

struct session {
    int slot; /* -1: free */
    struct moat_ses_rec rec;
    uint64_t last_s;
};

static struct port ports[MAX];
static int n_ports;
static struct slot slots[MAX];
static struct session *sessions;
static int n_sessions;
static int clients[MAX], n_clients;
static bool subscribed[MAX];
static uint64_t seq;
static char version[32] = "fake";
static uint32_t replacements;
static bool replaced; /* in this round */
static unsigned replace_at;
static bool tell_replaced; /* to who subscribes next */
static struct {
    int fd;
    uint32_t xid;
} asked = {.fd = -1}; /* for /slow: not answered yet */
static uint8_t in[MOAT_CTL_MAX], reply[MOAT_CTL_MAX];

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static struct port *find_port(const char *path)
{
    for (int i = 0; i < n_ports; i++)
        if (!strcmp(ports[i].path, path))
            return &ports[i];
    return NULL;
}

static struct slot *find_slot(const char *vnic)
{
    for (int i = 0; i < MAX; i++)
        if (slots[i].used && !strcmp(slots[i].conf.vnic, vnic))
            return &slots[i];
    return NULL;
}

static struct slot *slot_of(const struct port *p)
{
    for (int i = 0; i < MAX; i++)
        if (slots[i].used && !strcmp(slots[i].conf.path, p->path))
            return &slots[i];
    return NULL;
}

static void post_event(const struct moat_event *ev)
{
    struct {
        struct moat_ctl_head head;
        struct moat_event ev;
    } m;
    struct timespec ts;

    memset(&m, 0, sizeof m);
    m.ev = *ev;
    clock_gettime(CLOCK_REALTIME, &ts);
    m.head = (struct moat_ctl_head){.type = MOAT_CTL_EVENT,
                                    .version = MOAT_CTL_VERSION,
                                    .len = sizeof m.ev};
    m.ev.seq = ++seq;
    m.ev.time_us = (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
    for (int i = 0; i < n_clients; i++)
        if (subscribed[i])
            (void)!send(clients[i], &m, offsetof(__typeof__(m), ev) + sizeof m.ev,
                        MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void post(unsigned type, const struct slot *s, const char *path, int64_t value)
{
    struct moat_event ev = {.type = type, .value = value};

    if (s)
        strcpy(ev.vnic, s->conf.vnic);
    if (path)
        strcpy(ev.path, path);
    post_event(&ev);
}

static void set_state(struct slot *s, uint8_t state)
{
    if (s->state != state) {
        s->state = state;
        post(MOAT_EV_STATE, s, NULL, state);
    }
}

static void void_sessions(const struct slot *s)
{
    for (int i = 0; i < n_sessions; i++)
        if (sessions[i].slot == s - slots)
            sessions[i].slot = -1;
}

static uint32_t count(const struct slot *s)
{
    uint32_t n = 0;

    for (int i = 0; i < n_sessions; i++)
        n += sessions[i].slot == s - slots;
    return n;
}

static void open_slot(struct slot *s)
{
    int64_t held = s->hold_from ? now_ms() - s->hold_from : 0;

    s->ready = false;
    s->hold_from = 0;
    set_state(s, MOAT_SLOT_ACTIVE);
    post(MOAT_EV_OPENED, s, NULL, held * 1000);
}

static void turn(void)
{
    for (struct slot *s = slots; s < slots + MAX; s++) {
        if (!s->used || s->state != MOAT_SLOT_ARRIVING || !s->hold_from)
            continue;
        int64_t held = now_ms() - s->hold_from;
        if (!s->expired && held >= s->conf.settings.hold_ms) {
            s->expired = true;
            post(MOAT_EV_HOLD_EXPIRED, s, NULL, s->conf.settings.hold_ms);
        }
        if (held >= s->conf.settings.hold_ms + SILENT_MS && !s->unplugged)
            open_slot(s);
    }
}

/* --- the control socket ---------------------------------------------------------- */

static int refuse(size_t *len, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static int refuse(size_t *len, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    *len = (size_t)vsnprintf((char *)reply + sizeof(struct moat_ctl_head), 200, fmt, ap);
    va_end(ap);
    return err;
}

static void *body(void)
{
    return reply + sizeof(struct moat_ctl_head);
}

static int do_claim(const struct moat_slot_conf *c, size_t *len)
{
    struct slot *s = find_slot(c->vnic);

    for (int i = 0; i < MAX; i++)
        if (slots[i].used && &slots[i] != s && !strcmp(slots[i].conf.path, c->path))
            return refuse(len, -EEXIST, "path %s belongs to vNIC %s", c->path,
                          slots[i].conf.vnic);
    if (s && c->epoch < s->epoch)
        return refuse(len, -ESTALE, "epoch %llu is older than %llu", (unsigned long long)c->epoch,
                      (unsigned long long)s->epoch);
    if (!s) {
        for (s = slots; s->used; s++)
            if (s == slots + MAX - 1)
                return refuse(len, -ENOSPC, "all slots are used");
        memset(s, 0, sizeof *s);
        s->used = true;
        s->state = c->state;
    }
    s->conf = *c;
    s->epoch = c->epoch;
    s->unplugged = false;
    struct port *p = find_port(c->path);
    if (p) {
        p->replugged = false;
        if (p->running && s->state == MOAT_SLOT_ARRIVING && !s->hold_from)
            s->hold_from = now_ms();
    }
    return 0;
}

static int do_state(const struct moat_ctl_state *st, size_t *len)
{
    struct slot *s = find_slot(st->vnic);

    if (!s)
        return refuse(len, -ENOENT, "no vNIC %s", st->vnic);
    if (st->state == MOAT_SLOT_ENROLLING && s->state != MOAT_SLOT_ACTIVE &&
        s->state != MOAT_SLOT_BLOCKED && s->state != st->state)
        return refuse(len, -EINVAL, "a slot that is %s cannot enroll",
                      moat_slot_state_name(s->state));
    if ((st->state == MOAT_SLOT_DEPARTED && s->state != MOAT_SLOT_FROZEN &&
         s->state != MOAT_SLOT_BLOCKED && s->state != st->state) ||
        (st->state == MOAT_SLOT_FROZEN && s->state != st->state))
        return refuse(len, -EINVAL, "a slot that is %s cannot become %s",
                      moat_slot_state_name(s->state), moat_slot_state_name(st->state));
    if (st->epoch && st->epoch < s->epoch)
        return refuse(len, -ESTALE, "old epoch");
    if (st->epoch)
        s->epoch = st->epoch;
    s->precopy = st->precopy;
    s->wait_ms = st->wait_ms;
    if (st->state == MOAT_SLOT_ENROLLING && st->pickup_s)
        s->enroll_until = now_ms() + st->pickup_s * 1000LL;
    s->pickup_s = st->pickup_s;
    struct port *p = find_port(s->conf.path);
    if (s->state == MOAT_SLOT_ARRIVING && st->state == MOAT_SLOT_ACTIVE) {
        if (p && p->running && !s->unplugged)
            open_slot(s);
        else
            s->ready = true;
        return 0;
    }
    if (st->state == MOAT_SLOT_ARRIVING && s->state != MOAT_SLOT_ARRIVING) {
        void_sessions(s);
        s->ready = s->expired = false;
        s->hold_from = p && p->running ? now_ms() : 0;
    }
    if (st->state != MOAT_SLOT_ARRIVING)
        s->ready = false;
    set_state(s, st->state);
    return 0;
}

static int do_ruleset(struct slot *s, int fd, size_t *len)
{
    struct stat sb;
    int seals = fd >= 0 ? fcntl(fd, F_GET_SEALS) : -1;

    if (seals < 0 || !(seals & F_SEAL_WRITE) || fstat(fd, &sb) ||
        sb.st_size < (off_t)sizeof(struct moat_ruleset_head) || sb.st_size > MOAT_RULESET_VNIC_MAX)
        return refuse(len, -EINVAL, "not a sealed ruleset");
    free(s->blob);
    s->blob_len = (size_t)sb.st_size;
    s->blob = malloc(s->blob_len);
    if (!s->blob || pread(fd, s->blob, s->blob_len, 0) != sb.st_size)
        return refuse(len, -EIO, "unreadable");
    s->serial++;
    if (s->conf.settings.quarantine) {
        uint32_t cut = count(s);
        void_sessions(s);
        post(MOAT_EV_CUT, s, NULL, cut);
    }
    return 0;
}

static int send_ruleset(const struct slot *s)
{
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (write(fd, s->blob, s->blob_len) != (ssize_t)s->blob_len)
        abort();
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    return fd;
}

static void slot_info(const struct slot *s, struct moat_slot_info *i)
{
    const struct port *p = find_port(s->conf.path);

    memset(i, 0, sizeof *i);
    i->conf = s->conf;
    i->conf.epoch = s->epoch;
    i->state = s->unplugged ? MOAT_SLOT_BLOCKED : s->state;
    i->ready = s->ready;
    if (s->state == MOAT_SLOT_ENROLLING)
        i->enroll_left_s = (uint32_t)((s->enroll_until - now_ms() + 999) / 1000);
    i->has_port = p != NULL;
    if (p) {
        i->connected = p->connected;
        i->running = p->running;
        i->precopy = p->logging;
    }
    i->index = (uint32_t)(s - slots);
    i->sessions = count(s);
    i->serial = s->serial;
    if (s->blob) {
        const struct moat_ruleset_head *h = (const void *)s->blob;
        i->has_ruleset = 1;
        i->generation = h->generation;
        memcpy(i->digest, h->digest, sizeof i->digest);
    }
}

static int do_slot_list(uint32_t first, size_t *len)
{
    struct moat_ctl_list_reply *lr = body();
    struct moat_slot_info *out = (void *)(lr + 1);
    uint32_t i = first;

    lr->n = 0;
    for (; i < MAX && lr->n < 8; i++) /* few at a time, to try paging */
        if (slots[i].used)
            slot_info(&slots[i], &out[lr->n++]);
    lr->next = i < MAX ? i : 0;
    *len = sizeof *lr + lr->n * sizeof *out;
    return 0;
}

static int do_port_list(size_t *len)
{
    struct moat_ctl_list_reply *lr = body();
    struct moat_port_info *out = (void *)(lr + 1);

    lr->n = (uint32_t)n_ports;
    lr->next = 0;
    for (int i = 0; i < n_ports; i++) {
        const struct slot *s = slot_of(&ports[i]);
        memset(&out[i], 0, sizeof out[i]);
        strcpy(out[i].path, ports[i].path);
        out[i].connected = ports[i].connected;
        out[i].running = ports[i].running;
        out[i].claimed = s != NULL;
        if (s)
            strcpy(out[i].vnic, s->conf.vnic);
    }
    *len = sizeof *lr + lr->n * sizeof *out;
    return 0;
}

static int do_sessions(const struct moat_ctl_sessions *ask, size_t *len)
{
    const struct slot *s = find_slot(ask->vnic);
    struct moat_ctl_sessions_reply *sr = body();
    uint8_t *p = (uint8_t *)(sr + 1);
    int i = (int)ask->cursor;

    if (!s)
        return refuse(len, -ENOENT, "no vNIC %s", ask->vnic);
    memset(sr, 0, sizeof *sr);
    sr->now_s = (uint64_t)now_ms() / 1000;
    strcpy(sr->vnic, ask->vnic);
    for (; i < n_sessions && sr->n < 400; i++) {
        if (sessions[i].slot != s - slots || sessions[i].last_s < ask->since_s)
            continue;
        memset(p, 0, 4);
        p += 4;
        p += moat_ses_encode(&sessions[i].rec, p);
        sr->n++;
    }
    sr->cursor = i < n_sessions ? (uint32_t)i : 0;
    *len = (size_t)(p - (uint8_t *)sr);
    return 0;
}

static void add_session(int slot, const struct moat_ses_rec *r)
{
    for (int i = 0; i < n_sessions; i++)
        if (sessions[i].slot == slot && sessions[i].rec.lport == r->lport &&
            sessions[i].rec.rport == r->rport && !memcmp(sessions[i].rec.remote, r->remote, 16)) {
            sessions[i].last_s = (uint64_t)now_ms() / 1000;
            return;
        }
    if (n_sessions == MAX_SESSIONS)
        abort();
    sessions[n_sessions++] =
        (struct session){.slot = slot, .rec = *r, .last_s = (uint64_t)now_ms() / 1000};
}

static int do_import(const uint8_t *p, size_t n, size_t *len)
{
    struct moat_ctl_import im;
    struct moat_ctl_import_reply *out = body();

    if (n < sizeof im)
        return refuse(len, -EINVAL, "short");
    memcpy(&im, p, sizeof im);
    p += sizeof im;
    n -= sizeof im;
    const struct slot *s = find_slot(im.vnic);
    if (!s || s->state != MOAT_SLOT_ARRIVING)
        return refuse(len, -EINVAL, "the slot is not arriving");
    memset(out, 0, sizeof *out);
    while (im.n--) {
        struct moat_ses_rec r;
        unsigned k = n > 4 ? moat_ses_decode(p + 4, n - 4, &r) : 0;
        if (!k)
            return refuse(len, -EINVAL, "bad record");
        add_session((int)(s - slots), &r);
        out->accepted++;
        p += 4 + k;
        n -= 4 + k;
    }
    *len = sizeof *out;
    return 0;
}

/* --- another engine --- */

#define GATE_US 34

static void fill_replaced(struct moat_ctl_replaced *r)
{
    *r = (struct moat_ctl_replaced){.prepare_ms = 12, .gate_us = GATE_US, .tries = 1};
    snprintf(r->engine, sizeof r->engine, "fake%u", replacements + 1);
}

/* Slots, sessions and rulesets are its own from now on, and it starts to count events anew. */
static void take_over(void)
{
    struct {
        struct moat_ctl_head head;
        struct moat_ctl_replaced body;
    } m = {.head = {.type = MOAT_CTL_REPLACE | MOAT_CTL_REPLY,
                    .version = MOAT_CTL_VERSION - 1, /* as an older one would */
                    .xid = asked.xid,
                    .len = sizeof m.body}};

    if (asked.fd >= 0) {
        fill_replaced(&m.body);
        (void)!send(asked.fd, &m, sizeof m, MSG_NOSIGNAL);
    }
    asked.fd = -1;
    snprintf(version, sizeof version, "fake%u", ++replacements);
    seq = 0;
    tell_replaced = true;
    while (n_clients)
        close(clients[--n_clients]);
}

/* 1: the answer comes later. */
static int do_replace(int client, uint32_t xid, const char *file, size_t *len)
{
    if (!strcmp(file, "/bad"))
        return refuse(len, -ENOEXEC, "%s: it is not a Moat engine", file);
    if (asked.fd >= 0)
        return refuse(len, -EBUSY, "the engine is being replaced already");
    asked.fd = clients[client];
    asked.xid = xid;
    replaced = strcmp(file, "/slow");
    return 1;
}

/* To the first that has subscribed: so long it waits. */
static void tell_of_replacement(void)
{
    struct moat_event ev = {.type = MOAT_EV_REPLACED, .value = GATE_US};

    snprintf(ev.text, sizeof ev.text, "engine %s", version);
    post_event(&ev);
    tell_replaced = false;
}

/* 1: there is no answer yet. */
static int handle(int client, const struct moat_ctl_head *h, const void *b, int fd, size_t *len,
                  int *out_fd)
{
    const struct moat_ctl_vnic *v = b;
    struct moat_ctl_hello *hello = body();
    struct slot *s = h->len == sizeof *v ? find_slot(v->vnic) : NULL;

    *len = 0;
    switch (h->type) {
    case MOAT_CTL_HELLO:
        memset(hello, 0, sizeof *hello);
        hello->version = MOAT_CTL_VERSION;
        hello->pid = (uint32_t)getpid();
        hello->now_s = (uint64_t)now_ms() / 1000;
        hello->replacements = replacements;
        hello->gate_us = replacements ? GATE_US : 0;
        strcpy(hello->engine, version);
        strcpy(hello->file, "/usr/lib/moat/libmoat-engine.so");
        *len = sizeof *hello;
        return 0;
    case MOAT_CTL_SUBSCRIBE:
        subscribed[client] = true;
        return 0;
    case MOAT_CTL_REPLACE:
        return h->len == sizeof(struct moat_ctl_replace)
                   ? do_replace(client, h->xid, ((const struct moat_ctl_replace *)b)->file, len)
                   : -EINVAL;
    case MOAT_CTL_SLOT_LIST:
        return do_slot_list(((const struct moat_ctl_list *)b)->first, len);
    case MOAT_CTL_PORT_LIST:
        return do_port_list(len);
    case MOAT_CTL_CLAIM:
        return h->len == sizeof(struct moat_slot_conf) ? do_claim(b, len) : -EINVAL;
    case MOAT_CTL_STATE:
        return h->len == sizeof(struct moat_ctl_state) ? do_state(b, len) : -EINVAL;
    case MOAT_CTL_SESSIONS:
        return do_sessions(b, len);
    case MOAT_CTL_IMPORT:
        return do_import(b, h->len, len);
    default:
        break;
    }
    if (!s)
        return refuse(len, -ENOENT, "no such vNIC");
    switch (h->type) {
    case MOAT_CTL_RELEASE:
        void_sessions(s);
        free(s->blob);
        memset(s, 0, sizeof *s);
        return 0;
    case MOAT_CTL_RULESET:
        return do_ruleset(s, fd, len);
    case MOAT_CTL_RULESET_GET:
        if (!s->blob)
            return refuse(len, -ENOENT, "no ruleset");
        *out_fd = send_ruleset(s);
        return 0;
    case MOAT_CTL_HANDED_OVER:
        s->handed_over = true;
        return 0;
    case MOAT_CTL_FLUSH:
        void_sessions(s);
        return 0;
    case MOAT_CTL_COUNTERS:
        memset(body(), 0, MOAT_N_COUNTERS * 8);
        *len = MOAT_N_COUNTERS * 8;
        return 0;
    default:
        return refuse(len, -EOPNOTSUPP, "type %u", h->type);
    }
}

/* False: the client has gone. */
static bool serve(int client)
{
    struct moat_ctl_head *h = (void *)in, *rh = (void *)reply;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {in, sizeof in};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    int fd = -1, out_fd = -1;
    size_t len = 0;

    ssize_t n = recvmsg(clients[client], &msg, 0);
    if (n <= 0)
        return false;
    struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
    if (cm && cm->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(cm), sizeof fd);
    if ((size_t)n < sizeof *h || h->len != (size_t)n - sizeof *h)
        return false;
    if (h->type == replace_at) {
        replaced = true;
        replace_at = 0;
        if (fd >= 0)
            close(fd);
        return true;
    }
    int rc = handle(client, h, in + sizeof *h, fd, &len, &out_fd);
    if (rc > 0)
        return true;
    *rh = (struct moat_ctl_head){.type = h->type | MOAT_CTL_REPLY,
                                 .version = MOAT_CTL_VERSION,
                                 .xid = h->xid,
                                 .len = (uint32_t)len,
                                 .status = rc};
    iov = (struct iovec){reply, sizeof *rh + len};
    msg = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
    if (out_fd >= 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof control.buf;
        cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &out_fd, sizeof out_fd);
    }
    bool ok = sendmsg(clients[client], &msg, MSG_NOSIGNAL) >= 0;
    if (h->type == MOAT_CTL_SUBSCRIBE && tell_replaced)
        tell_of_replacement();
    if (fd >= 0)
        close(fd);
    if (out_fd >= 0)
        close(out_fd);
    return ok;
}

/* --- commands ------------------------------------------------------------------------ */

static void cmd_stop(struct port *p)
{
    struct slot *s = slot_of(p);

    p->running = false;
    post(MOAT_EV_RINGS_STOPPED, s, p->path, 0);
    if (s && p->logging && s->precopy &&
        (s->state == MOAT_SLOT_ACTIVE || s->state == MOAT_SLOT_ENROLLING)) {
        s->handed_over = s->precopy = false;
        s->frozen_at = now_ms();
        set_state(s, MOAT_SLOT_FROZEN);
        post(MOAT_EV_FROZEN, s, NULL, 0);
    }
}

static void cmd_start(struct port *p)
{
    struct slot *s = slot_of(p);

    p->running = true;
    post(MOAT_EV_RINGS_STARTED, s, p->path, 0);
    if (s && s->state == MOAT_SLOT_ARRIVING) {
        if (!s->hold_from)
            s->hold_from = now_ms();
        s->expired = false;
        if (s->ready && !s->unplugged)
            open_slot(s);
    }
}

static void cmd_sessions(const struct slot *s, int n)
{
    for (int i = 0; s && i < n; i++) {
        struct moat_ses_rec r = {.family = 4, .proto = 6, .lport = 5432,
                                 .rport = (uint16_t)(1000 + i), .rule = 1, .generation = 1};
        r.local[0] = r.remote[0] = 10;
        r.remote[2] = (uint8_t)(i >> 16);
        r.remote[3] = 1;
        add_session((int)(s - slots), &r);
    }
}

static void print_slot(FILE *out, const struct slot *s)
{
    struct moat_slot_info i;

    slot_info(s, &i);
    fprintf(out, "%s state=%s epoch=%llu sessions=%u ruleset=%d generation=%llu ready=%d "
                 "running=%d pickup=%u policy=%s precopy=%d quarantine=%d serial=%u\n",
            s->conf.vnic, moat_slot_state_name(i.state), (unsigned long long)s->epoch, i.sessions,
            i.has_ruleset, (unsigned long long)i.generation, i.ready, i.running, s->pickup_s,
            moat_fail_name(s->conf.settings.on_missing_policy), s->precopy,
            s->conf.settings.quarantine, s->serial);
}

static void command(char *line, FILE *out)
{
    char *save = NULL, *word = strtok_r(line, " \n", &save), *arg = strtok_r(NULL, " \n", &save);
    char *arg2 = strtok_r(NULL, " \n", &save);
    struct port *p = arg ? find_port(arg) : NULL;
    struct slot *s = arg ? find_slot(arg) : NULL;

    if (!word)
        return;
    if (!strcmp(word, "quit"))
        exit(0);
    if (!strcmp(word, "replace") || (!strcmp(word, "replace-at") && arg)) {
        replaced = !arg;
        replace_at = arg ? (unsigned)atoi(arg) : 0;
        return;
    }
    if (!strcmp(word, "port") && arg && !p) {
        p = &ports[n_ports++];
        memset(p, 0, sizeof *p);
        snprintf(p->path, sizeof p->path, "%s", arg);
        post(MOAT_EV_PORT, slot_of(p), p->path, 0);
    } else if (!strcmp(word, "replug") && p) {
        p->connected = p->running = p->logging = false;
        s = slot_of(p);
        if (s)
            s->unplugged = true;
        post(MOAT_EV_REPLUGGED, s, p->path, 0);
    } else if (!strcmp(word, "unplug") && p) {
        p->connected = p->running = p->logging = false;
    } else if ((!strcmp(word, "connect") || !strcmp(word, "disconnect")) && p) {
        if (p->running && word[0] == 'd') /* the vhost library takes the device down first */
            cmd_stop(p);
        p->connected = word[0] == 'c';
        p->logging = false;
        post(p->connected ? MOAT_EV_CONNECTED : MOAT_EV_DISCONNECTED, slot_of(p), p->path, 0);
    } else if (!strcmp(word, "log") && p && arg2) {
        p->logging = !strcmp(arg2, "on");
        post(MOAT_EV_PRECOPY, slot_of(p), p->path, p->logging);
    } else if (!strcmp(word, "start") && p) {
        cmd_start(p);
    } else if (!strcmp(word, "stop") && p) {
        cmd_stop(p);
    } else if (!strcmp(word, "sessions") && s && arg2) {
        cmd_sessions(s, atoi(arg2));
    } else if (!strcmp(word, "slot")) {
        if (s)
            print_slot(out, s);
        else
            fprintf(out, "none\n");
    } else if (!strcmp(word, "slots")) {
        for (s = slots; s < slots + MAX; s++)
            if (s->used)
                print_slot(out, s);
    } else if (!strcmp(word, "count") && s) {
        fprintf(out, "%u\n", count(s));
    } else if (!strcmp(word, "enrolled") && s && arg2 && s->state == MOAT_SLOT_ENROLLING) {
        set_state(s, MOAT_SLOT_ACTIVE);
        post(MOAT_EV_ENROLLED, s, NULL, atoi(arg2));
    } else if ((!strcmp(word, "learnt") || !strcmp(word, "quota")) && s) {
        struct moat_event ev = {
            .type = *word == 'l' ? MOAT_EV_LEARNT : MOAT_EV_QUOTA,
            .reason = *word == 'l' ? MOAT_R_NONE : MOAT_R_QUOTA_HALF_OPEN,
            .flow = {.family = MOAT_FAM_IP4, .local = {10, 0, 0, 77}},
        };
        strcpy(ev.vnic, s->conf.vnic);
        post_event(&ev);
    } else if (!strcmp(word, "corrupt") && s) {
        free(s->blob);
        s->blob = NULL;
        s->blob_len = 0;
        post(MOAT_EV_STATE, s, NULL, s->state);
    } else {
        fprintf(out, "error: %s\n", word);
    }
}

static int listen_at(const char *path, int type)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&sun, sizeof sun) || listen(fd, 16)) {
        perror(path);
        exit(1);
    }
    return fd;
}

static int say(int argc, char *argv[])
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char buf[4096];
    ssize_t n;

    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", argv[2]);
    if (connect(fd, (struct sockaddr *)&sun, sizeof sun)) {
        perror(argv[2]);
        return 1;
    }
    FILE *f = fdopen(fd, "r+");
    for (int i = 3; i < argc; i++)
        fprintf(f, "%s ", argv[i]);
    fprintf(f, "\n");
    fflush(f);
    while ((n = read(fd, buf, sizeof buf)) > 0)
        fwrite(buf, 1, (size_t)n, stdout);
    return 0;
}

static void obey(int listener)
{
    char line[512] = "";
    int fd = accept(listener, NULL, NULL);

    if (fd < 0)
        return;
    FILE *f = fdopen(fd, "r+");
    if (f && fgets(line, sizeof line, f)) {
        fflush(f);
        command(line, f);
    }
    if (f)
        fclose(f);
}

int main(int argc, char *argv[])
{
    if (argc > 3 && !strcmp(argv[1], "-c"))
        return say(argc, argv);
    if (argc != 3) {
        fprintf(stderr, "usage: fake_engine CTL CMD | fake_engine -c CMD WORD...\n");
        return 2;
    }
    sessions = calloc(MAX_SESSIONS, sizeof *sessions);
    int ctl = listen_at(argv[1], SOCK_SEQPACKET), cmd = listen_at(argv[2], SOCK_STREAM);
    for (;;) {
        struct pollfd fds[MAX + 2] = {{.fd = ctl, .events = POLLIN}, {.fd = cmd, .events = POLLIN}};
        int n = n_clients;

        for (int i = 0; i < n; i++)
            fds[i + 2] = (struct pollfd){.fd = clients[i], .events = POLLIN};
        poll(fds, (nfds_t)n + 2, 10);
        turn();
        if (fds[1].revents)
            obey(cmd);
        for (int i = n - 1; i >= 0; i--)
            if (fds[i + 2].revents && !serve(i)) {
                if (clients[i] == asked.fd)
                    asked.fd = -1;
                close(clients[i]);
                n_clients--;
                clients[i] = clients[n_clients];
                subscribed[i] = subscribed[n_clients];
            }
        if (fds[0].revents && n_clients < MAX) {
            clients[n_clients] = accept(ctl, NULL, NULL);
            subscribed[n_clients++] = false;
        }
        if (replaced)
            take_over();
        replaced = false;
    }
}
