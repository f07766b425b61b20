/* SPDX-License-Identifier: Apache-2.0 */

/* One round: poll; take new clients; read one request of each client and answer it; give
 * the engine its turn; send events to those who subscribed.
 *
 *   bytes -> receive() -> admit() head, size, HELLO first -> handler -> answer()
 *
 * A handler gets a body of the right size and checks its fields (texts end within their
 * field, numbers in range) before the engine sees it.  Whatever is refused is answered
 * with the reason, counted, reported by an event (a few per second), and logged once per
 * kind.  Descriptors that came with a message are closed when it has been answered.
 *
 * An answer that the client does not take at once is kept; until it is gone the client is
 * not read and gets no events.  Events are never kept: the gap in their numbers tells. */

#include "ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
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

#include "engine.h"
#include "slot.h"
#include "transfer.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define BODY_MAX (MOAT_CTL_MAX - sizeof(struct moat_ctl_head))
#define N_TYPES (MOAT_CTL_FLUSH + 1)
#define N_ERRNOS 160
#define MAX_FDS 8              /* that we take along in order to close them */
#define REFUSALS_PER_SECOND 10 /* events; the rest is counted only */
#define EVENTS_PER_ROUND 1024
#define ACCEPT_PAUSE_MS 1000 /* when the process is out of descriptors */
#define WAIT_MS_MAX 10000    /* of moat_ctl_state: the vhost thread serves all ports */

struct client {
    int fd; /* -1: unused */
    bool greeted, subscribed;
    struct moat_ctl_head *answer; /* not taken yet; with its body */
    int answer_fd;
};

struct moat_ctl_server {
    struct moat_engine *engine;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    uid_t uid;
    void (*log)(const char *);
    int listen_fd;
    uint64_t turn_at, accept_at; /* milliseconds */
    uint64_t refused;
    uint64_t refused_second;
    unsigned refused_this_second;
    bool logged[N_TYPES][N_ERRNOS];
    struct client clients[MOAT_CTL_MAX_CLIENTS];
    _Alignas(16) uint8_t in[MOAT_CTL_MAX], out[MOAT_CTL_MAX];
};

/* A request on its way to its answer. */
struct request {
    struct moat_ctl_head head;
    const void *body;
    size_t len;
    int fds[MAX_FDS];
    unsigned n_fds;
    bool truncated;
    struct client *client;
    /* the answer */
    void *reply; /* BODY_MAX bytes */
    size_t reply_len;
    int reply_fd; /* -1: none; closed when it has been sent */
    char why[256];
};

static uint64_t monotonic_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* --- checks --- */

static __attribute__((format(printf, 3, 4))) int refuse(struct request *r, int rc, const char *fmt,
                                                        ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->why, sizeof r->why, fmt, ap);
    va_end(ap);
    return rc;
}

/* A text must end within its field and be fit to be shown. */
static int check_text(struct request *r, const char *name, const char *s, size_t size)
{
    const char *end = memchr(s, 0, size);

    if (!end)
        return refuse(r, -EINVAL, "%s does not end within its %zu bytes", name, size);
    for (; s < end; s++)
        if ((uint8_t)*s < 0x20 || *s == 0x7f)
            return refuse(r, -EINVAL, "%s has a control character", name);
    return 0;
}
#define CHECK_TEXT(R, NAME, FIELD) check_text(R, NAME, FIELD, sizeof(FIELD))

static int check_vnic(struct request *r, const char vnic[MOAT_ID_MAX])
{
    int rc = check_text(r, "vNIC id", vnic, MOAT_ID_MAX);

    return rc || vnic[0] ? rc : refuse(r, -EINVAL, "vNIC id is empty");
}

static int check_max(struct request *r, const char *name, uint64_t value, uint64_t max)
{
    return value <= max ? 0
                        : refuse(r, -EINVAL, "%s is %llu, at most %llu", name,
                                 (unsigned long long)value, (unsigned long long)max);
}

static int check_settings(struct request *r, const struct moat_settings *s)
{
    int rc = check_max(r, "on-missing-policy", s->on_missing_policy, MOAT_FAIL_ALLOW);

    rc = rc ? rc : check_max(r, "on-missing-state", s->on_missing_state, MOAT_FAIL_PICKUP);
    rc = rc ? rc : check_max(r, "on-unprotected-host", s->on_unprotected_host, MOAT_FAIL_PICKUP);
    rc = rc ? rc : check_max(r, "tcp-loose", s->tcp_loose, 1);
    rc = rc ? rc : check_max(r, "spoof", s->spoof, MOAT_SPOOF_LEARN);
    rc = rc ? rc : check_max(r, "vlan", s->vlan, MOAT_VLAN_INSPECT);
    rc = rc ? rc : check_max(r, "ra-guard", s->ra_guard, 1);
    rc = rc ? rc : check_max(r, "dhcp-guard", s->dhcp_guard, 1);
    rc = rc ? rc : check_max(r, "number of ethertypes", s->n_ethertypes, MOAT_ETHERTYPES_MAX);
    for (unsigned i = 0; !rc && i < MOAT_N_TIMERS; i++)
        rc = check_max(r, moat_timer_name(i), s->timers[i], MOAT_TIMER_MAX);
    rc = rc ? rc : check_max(r, "transfer-sessions", s->transfer_sessions, 1);
    return rc ? rc : check_max(r, "quarantine", s->quarantine, 1);
}

static int check_conf(struct request *r, const struct moat_slot_conf *c)
{
    int rc = check_vnic(r, c->vnic);

    rc = rc ? rc : CHECK_TEXT(r, "VM name", c->vm);
    rc = rc ? rc : CHECK_TEXT(r, "network", c->network);
    rc = rc ? rc : CHECK_TEXT(r, "path", c->path);
    rc = rc ? rc : check_max(r, "number of addresses", c->n_addrs, MOAT_ADDRS_MAX);
    rc = rc ? rc : check_max(r, "state", c->state, MOAT_N_SLOT_STATES - 1);
    for (unsigned i = 0; !rc && i < c->n_addrs; i++) {
        const struct moat_addr *a = &c->addrs[i];

        if ((a->family != 4 && a->family != 6) || a->plen > (a->family == 4 ? 32 : 128))
            rc = refuse(r, -EINVAL, "address %u has family %u and prefix length %u", i, a->family,
                        a->plen);
    }
    return rc ? rc : check_settings(r, &c->settings);
}

/* --- handlers: 0 with the answer in r, or negative errno with r->why --- */

typedef int handler_fn(struct moat_ctl_server *, struct request *);

static void *answer_with(struct request *r, size_t len)
{
    r->reply_len = len;
    return memset(r->reply, 0, len);
}

static int on_hello(struct moat_ctl_server *c, struct request *r)
{
    struct moat_engine *e = c->engine;
    const uint32_t *version = r->body;
    struct moat_ctl_hello *h;

    if (*version != MOAT_CTL_VERSION)
        return refuse(r, -EPROTONOSUPPORT, "this engine speaks version %u, not %u",
                      MOAT_CTL_VERSION, *version);
    r->client->greeted = true;
    h = answer_with(r, sizeof *h);
    h->version = MOAT_CTL_VERSION;
    h->pid = (uint32_t)getpid();
    h->n_slots = e->conf.n_slots;
    for (uint32_t i = 0; i < e->conf.n_slots; i++)
        h->slots_used += __atomic_load_n(&e->slots[i].view, __ATOMIC_RELAXED) != NULL;
    pthread_mutex_lock(&e->lock);
    h->n_ports = e->n_ports;
    pthread_mutex_unlock(&e->lock);
    h->sessions_max = moat_session_table_size(e->sessions);
    h->sessions_used = moat_session_table_used(e->sessions);
    h->layout_version = MOAT_MAPPING_LAYOUT;
    h->now_s = moat_engine_now_ms(e) / 1000;
    h->started_s = e->started_s;
    h->events_lost = __atomic_load_n(&e->events.lost, __ATOMIC_RELAXED);
    h->recovered_slots = e->recovered_slots;
    h->recovered_sessions = e->recovered_sessions;
    h->unclaimed = e->conf.unclaimed;
    snprintf(h->engine, sizeof h->engine, "%s", MOAT_VERSION);
    snprintf(h->mapping, sizeof h->mapping, "%s", e->conf.mapping ? e->conf.mapping : "");
    return 0;
}

/* As many elements as fit; `next` says where to go on. */
static int on_slot_list(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_list *ask = r->body;
    struct moat_ctl_list_reply *list = answer_with(r, sizeof *list);
    struct moat_slot_info *info = (struct moat_slot_info *)(list + 1);
    const uint32_t max = (BODY_MAX - sizeof *list) / sizeof *info;

    for (uint32_t i = ask->first; i < c->engine->conf.n_slots; i++) {
        if (list->n == max) {
            list->next = i;
            break;
        }
        if (moat_slot_info(c->engine, i, &info[list->n]))
            list->n++;
    }
    r->reply_len += list->n * sizeof *info;
    return 0;
}

static int on_port_list(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_list *ask = r->body;
    struct moat_ctl_list_reply *list = answer_with(r, sizeof *list);
    struct moat_port_info *info = (struct moat_port_info *)(list + 1), next;
    const uint32_t max = (BODY_MAX - sizeof *list) / sizeof *info;
    uint32_t i = ask->first;

    while (list->n < max && moat_port_info(c->engine, i, &info[list->n])) {
        list->n++;
        i++;
    }
    if (list->n == max && moat_port_info(c->engine, i, &next))
        list->next = i;
    r->reply_len += list->n * sizeof *info;
    return 0;
}

static int on_claim(struct moat_ctl_server *c, struct request *r)
{
    int rc = check_conf(r, r->body);

    return rc ? rc : moat_slot_claim(c->engine, r->body, r->why, sizeof r->why);
}

static int on_release(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_release(c->engine, ask->vnic, r->why, sizeof r->why);
}

static int on_state(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_state *ask = r->body;
    int rc = check_vnic(r, ask->vnic);

    rc = rc ? rc : check_max(r, "state", ask->state, MOAT_N_SLOT_STATES - 1);
    rc = rc ? rc : check_max(r, "precopy", ask->precopy, 1);
    rc = rc ? rc : check_max(r, "wait-ms", ask->wait_ms, WAIT_MS_MAX);
    if (!rc && ask->state == MOAT_SLOT_FREE)
        rc = refuse(r, -EINVAL, "a slot becomes free by its release only");
    return rc ? rc : moat_slot_set_state(c->engine, ask, r->why, sizeof r->why);
}

/* The sender could go on writing to what is not sealed. */
static int check_memfd(struct request *r, int fd, size_t *size)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;

    if (seals < 0 || (seals & SEALS) != SEALS)
        return refuse(r, -EPERM, "the ruleset is not in a memfd sealed against change");
    if (fstat(fd, &st))
        return refuse(r, -errno, "the ruleset's memfd: %s", strerror(errno));
    if (st.st_size <= 0 || st.st_size > MOAT_RULESET_MAX_SIZE)
        return refuse(r, -EFBIG, "a ruleset of %lld bytes, 1 to %u are possible",
                      (long long)st.st_size, MOAT_RULESET_MAX_SIZE);
    *size = (size_t)st.st_size;
    return 0;
}

static void *read_memfd(struct request *r, int fd, size_t size, int *rc)
{
    uint8_t *blob = malloc(size);
    size_t done = 0;

    if (!blob) {
        *rc = refuse(r, -ENOMEM, "out of memory");
        return NULL;
    }
    while (done < size) {
        ssize_t n = pread(fd, blob + done, size - done, (off_t)done);

        if (n <= 0) {
            *rc = refuse(r, n ? -errno : -EIO, "the ruleset's memfd cannot be read");
            free(blob);
            return NULL;
        }
        done += (size_t)n;
    }
    return blob;
}

static int on_ruleset(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic);
    size_t size = 0;
    void *blob;

    rc = rc ? rc : check_memfd(r, r->fds[0], &size);
    if (rc)
        return rc;
    blob = read_memfd(r, r->fds[0], size, &rc);
    if (blob)
        rc = moat_slot_publish(c->engine, ask->vnic, blob, size, r->why, sizeof r->why);
    free(blob);
    return rc;
}

static int make_memfd(const void *blob, size_t size)
{
    int fd = memfd_create("moat-ruleset", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd >= 0 &&
        (write(fd, blob, size) != (ssize_t)size || fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL))) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static int on_ruleset_get(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic);
    size_t size = 0;
    void *blob;

    if (rc)
        return rc;
    if (moat_slot_find(c->engine, ask->vnic) < 0)
        return refuse(r, -ENOENT, "no slot for vNIC %s", ask->vnic);
    blob = moat_slot_ruleset(c->engine, ask->vnic, &size);
    if (!blob)
        return errno == ENOMEM ? refuse(r, -ENOMEM, "out of memory")
                               : refuse(r, -ENOENT, "vNIC %s has no ruleset", ask->vnic);
    r->reply_fd = make_memfd(blob, size);
    free(blob);
    return r->reply_fd >= 0 ? 0 : refuse(r, -EIO, "no memfd for the ruleset");
}

static int on_sessions(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_sessions *ask = r->body;
    int rc = CHECK_TEXT(r, "vNIC id", ask->vnic);

    if (rc)
        return rc;
    rc = moat_transfer_export(c->engine, ask, r->reply, BODY_MAX);
    if (rc == -ENOENT)
        return refuse(r, rc, "no slot for vNIC %s", ask->vnic);
    if (rc < 0)
        return refuse(r, rc, "sessions cannot be read: %s", strerror(-rc));
    r->reply_len = (size_t)rc;
    return 0;
}

static int on_import(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_import *ask = r->body;
    int rc = check_vnic(r, ask->vnic);

    rc = rc ? rc : check_max(r, "same-policy", ask->same_policy, 1);
    rc = rc ? rc
            : check_max(r, "number of records", ask->n,
                        (r->len - sizeof *ask) / (4 + MOAT_SES_LEN4));
    if (rc)
        return rc;
    struct moat_ctl_import_reply *done = answer_with(r, sizeof *done);
    return moat_transfer_import(c->engine, ask, ask + 1, r->len - sizeof *ask, done, r->why,
                                sizeof r->why);
}

static int on_counters(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic), slot;

    if (rc)
        return rc;
    slot = moat_slot_find(c->engine, ask->vnic);
    if (slot < 0)
        return refuse(r, -ENOENT, "no slot for vNIC %s", ask->vnic);
    moat_engine_counters(c->engine, (uint32_t)slot,
                         answer_with(r, MOAT_N_COUNTERS * sizeof(uint64_t)));
    return 0;
}

static int on_rule_hits(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_hits *ask = r->body;
    struct moat_ctl_list_reply *list;
    int rc = check_vnic(r, ask->vnic);

    if (rc)
        return rc;
    list = answer_with(r, sizeof *list);
    rc = moat_slot_hits(c->engine, ask->vnic, ask->first,
                        (BODY_MAX - sizeof *list) / sizeof(struct moat_rule_hit),
                        (struct moat_rule_hit *)(list + 1), &list->next);
    if (rc < 0)
        return refuse(r, rc, "no slot for vNIC %s", ask->vnic);
    list->n = (uint32_t)rc;
    r->reply_len += list->n * sizeof(struct moat_rule_hit);
    return 0;
}

static int on_subscribe(struct moat_ctl_server *c, struct request *r)
{
    (void)c;
    r->client->subscribed = true;
    return 0;
}

static int on_handed_over(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_handed_over(c->engine, ask->vnic, r->why, sizeof r->why);
}

static int on_flush(struct moat_ctl_server *c, struct request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_flush(c->engine, ask->vnic, r->why, sizeof r->why);
}

static const struct {
    const char *name;
    handler_fn *fn;
    size_t len;  /* of the body */
    bool longer; /* it may be longer */
    unsigned n_fds;
} handlers[N_TYPES] = {
    [MOAT_CTL_HELLO] = {"hello", on_hello, sizeof(uint32_t), false, 0},
    [MOAT_CTL_SLOT_LIST] = {"slot-list", on_slot_list, sizeof(struct moat_ctl_list), false, 0},
    [MOAT_CTL_PORT_LIST] = {"port-list", on_port_list, sizeof(struct moat_ctl_list), false, 0},
    [MOAT_CTL_CLAIM] = {"claim", on_claim, sizeof(struct moat_slot_conf), false, 0},
    [MOAT_CTL_RELEASE] = {"release", on_release, sizeof(struct moat_ctl_vnic), false, 0},
    [MOAT_CTL_STATE] = {"state", on_state, sizeof(struct moat_ctl_state), false, 0},
    [MOAT_CTL_RULESET] = {"ruleset", on_ruleset, sizeof(struct moat_ctl_vnic), false, 1},
    [MOAT_CTL_SESSIONS] = {"sessions", on_sessions, sizeof(struct moat_ctl_sessions), false, 0},
    [MOAT_CTL_IMPORT] = {"import", on_import, sizeof(struct moat_ctl_import), true, 0},
    [MOAT_CTL_COUNTERS] = {"counters", on_counters, sizeof(struct moat_ctl_vnic), false, 0},
    [MOAT_CTL_RULE_HITS] = {"rule-hits", on_rule_hits, sizeof(struct moat_ctl_hits), false, 0},
    [MOAT_CTL_SUBSCRIBE] = {"subscribe", on_subscribe, 0, false, 0},
    [MOAT_CTL_HANDED_OVER] = {"handed-over", on_handed_over, sizeof(struct moat_ctl_vnic), false,
                              0},
    [MOAT_CTL_RULESET_GET] = {"ruleset-get", on_ruleset_get, sizeof(struct moat_ctl_vnic), false,
                              0},
    [MOAT_CTL_FLUSH] = {"flush", on_flush, sizeof(struct moat_ctl_vnic), false, 0},
};

/* --- one request --- */

static const char *type_name(unsigned type)
{
    return type < N_TYPES && handlers[type].fn ? handlers[type].name : "request";
}

/* Is it a message that a handler may look at? */
static int admit(struct request *r)
{
    unsigned type = r->head.type;

    if (r->truncated)
        return refuse(r, -EMSGSIZE, "a message of more than %u bytes or %u descriptors",
                      MOAT_CTL_MAX, MAX_FDS);
    if (!r->body)
        return refuse(r, -EBADMSG, "a message of %zu bytes is too short for a head", r->len);
    if (r->head.version != MOAT_CTL_VERSION)
        return refuse(r, -EPROTONOSUPPORT, "this engine speaks version %u, not %u",
                      MOAT_CTL_VERSION, r->head.version);
    if (type >= N_TYPES || !handlers[type].fn)
        return refuse(r, -EOPNOTSUPP, "there is no request of type %u", type);
    if (r->head.len != r->len)
        return refuse(r, -EBADMSG, "%zu bytes follow the head, which says %u", r->len, r->head.len);
    if (r->len < handlers[type].len || (r->len > handlers[type].len && !handlers[type].longer))
        return refuse(r, -EBADMSG, "%zu bytes, expected %s%zu", r->len,
                      handlers[type].longer ? "at least " : "", handlers[type].len);
    if (r->n_fds != handlers[type].n_fds)
        return refuse(r, -EBADF, "%u descriptors came along, expected %u", r->n_fds,
                      handlers[type].n_fds);
    if (type != MOAT_CTL_HELLO && !r->client->greeted)
        return refuse(r, -EPROTO, "HELLO comes first");
    return 0;
}

/* Counts, reports and logs what was refused. */
static void report(struct moat_ctl_server *c, unsigned type, int rc, const char *why)
{
    struct moat_event ev = {.type = MOAT_EV_REFUSED};
    uint64_t second = monotonic_ms() / 1000;
    bool *logged = &c->logged[type < N_TYPES ? type : 0][-rc > 0 && -rc < N_ERRNOS ? -rc : 0];

    snprintf(ev.text, sizeof ev.text, "%s: %s", type_name(type), why);
    ev.value = (int64_t)++c->refused;
    if (second != c->refused_second) {
        c->refused_second = second;
        c->refused_this_second = 0;
    }
    if (c->refused_this_second++ < REFUSALS_PER_SECOND)
        moat_event_post(&c->engine->events, &ev, false);
    if (!*logged && c->log) {
        char text[400];

        snprintf(text, sizeof text, "control socket: refused %s: %s (further ones are counted)",
                 type_name(type), why);
        c->log(text);
    }
    *logged = true;
}

static void drop_client(struct client *cl)
{
    close(cl->fd);
    if (cl->answer && cl->answer_fd >= 0)
        close(cl->answer_fd);
    free(cl->answer);
    *cl = (struct client){.fd = -1};
}

/* 0, or negative errno. */
static int send_message(int to, const struct moat_ctl_head *head, int fd)
{
    struct iovec iov = {(void *)(uintptr_t)head, sizeof *head + head->len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    ssize_t n;

    if (fd >= 0) {
        struct cmsghdr *cm;

        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof control.buf;
        cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &fd, sizeof fd);
    }
    do {
        n = sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static bool is_full(int rc)
{
    return rc == -EAGAIN || rc == -EWOULDBLOCK || rc == -ENOBUFS;
}

/* Sends the answer, or keeps it until the client takes it.  fd is ours from here on. */
static void answer(struct client *cl, const struct moat_ctl_head *head, int fd)
{
    int rc = send_message(cl->fd, head, fd);

    if (is_full(rc)) {
        cl->answer = malloc(sizeof *head + head->len);
        if (cl->answer) {
            memcpy(cl->answer, head, sizeof *head + head->len);
            cl->answer_fd = fd;
            return;
        }
    }
    if (fd >= 0)
        close(fd);
    if (rc)
        drop_client(cl);
}

static void answer_again(struct client *cl)
{
    int rc = send_message(cl->fd, cl->answer, cl->answer_fd);

    if (is_full(rc))
        return;
    if (rc) {
        drop_client(cl);
        return;
    }
    if (cl->answer_fd >= 0)
        close(cl->answer_fd);
    free(cl->answer);
    cl->answer = NULL;
}

static void serve(struct moat_ctl_server *c, struct request *r)
{
    struct moat_ctl_head *head = (struct moat_ctl_head *)c->out;
    int rc = admit(r);

    if (!rc)
        rc = handlers[r->head.type].fn(c, r);
    if (rc) {
        report(c, r->head.type, rc, r->why);
        r->reply_len = strlen(r->why);
        memcpy(r->reply, r->why, r->reply_len);
        if (r->reply_fd >= 0)
            close(r->reply_fd);
        r->reply_fd = -1;
    }
    *head = (struct moat_ctl_head){.type = r->head.type | MOAT_CTL_REPLY,
                                   .version = MOAT_CTL_VERSION,
                                   .xid = r->head.xid,
                                   .len = (uint32_t)r->reply_len,
                                   .status = rc};
    answer(r->client, head, r->reply_fd);
}

static void take_fds(struct msghdr *msg, struct request *r)
{
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cm) + i * sizeof fd, sizeof fd);
            if (r->n_fds < MAX_FDS)
                r->fds[r->n_fds++] = fd;
            else
                close(fd);
        }
    }
}

/* 1: there is a request.  0: not now.  -1: the client has gone. */
static int receive(struct moat_ctl_server *c, struct client *cl, struct request *r)
{
    struct iovec iov = {c->in, sizeof c->in};
    union {
        char buf[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    ssize_t n = recvmsg(cl->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    *r = (struct request){.client = cl,
                          .len = (size_t)n,
                          .reply = c->out + sizeof(struct moat_ctl_head),
                          .reply_fd = -1,
                          .truncated = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)};
    take_fds(&msg, r);
    if (!n && !r->n_fds)
        return -1;
    if (r->len >= sizeof r->head) {
        memcpy(&r->head, c->in, sizeof r->head);
        r->body = c->in + sizeof r->head;
        r->len -= sizeof r->head;
    }
    return 1;
}

static void read_client(struct moat_ctl_server *c, struct client *cl)
{
    struct request r;
    int rc = receive(c, cl, &r);

    if (rc < 0)
        drop_client(cl);
    if (rc <= 0)
        return;
    serve(c, &r);
    for (unsigned i = 0; i < r.n_fds; i++)
        close(r.fds[i]);
}

/* --- clients come --- */

static struct client *free_client(struct moat_ctl_server *c)
{
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd < 0)
            return &c->clients[i];
    return NULL;
}

static void accept_client(struct moat_ctl_server *c, uint64_t now)
{
    int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct client *cl = free_client(c);
    socklen_t len = sizeof(struct ucred);
    struct ucred peer;

    if (fd < 0) {
        /* Out of descriptors: the socket stays readable, do not spin. */
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            c->accept_at = now + ACCEPT_PAUSE_MS;
        return;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) || peer.uid != c->uid) {
        report(c, 0, -EACCES, "a connection of another user");
        close(fd);
    } else if (!cl) {
        report(c, 0, -EUSERS, "a connection: there are too many");
        close(fd);
    } else {
        *cl = (struct client){.fd = fd};
    }
}

/* --- events go --- */

static void broadcast(struct moat_ctl_server *c)
{
    struct {
        struct moat_ctl_head head;
        struct moat_event event;
    } m = {.head = {.type = MOAT_CTL_EVENT, .version = MOAT_CTL_VERSION, .len = sizeof m.event}};

    for (unsigned n = 0; n < EVENTS_PER_ROUND && moat_event_take(&c->engine->events, &m.event);
         n++) {
        for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++) {
            struct client *cl = &c->clients[i];
            int rc;

            if (cl->fd < 0 || !cl->subscribed || cl->answer)
                continue;
            rc = send_message(cl->fd, &m.head, -1);
            if (rc && !is_full(rc))
                drop_client(cl);
        }
    }
}

/* --- the round --- */

static void fill_polls(const struct moat_ctl_server *c, struct pollfd *p, uint64_t now)
{
    p[0] = (struct pollfd){.fd = now < c->accept_at ? -1 : c->listen_fd, .events = POLLIN};
    p[1] = (struct pollfd){.fd = c->engine->events.wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        p[2 + i] = (struct pollfd){.fd = c->clients[i].fd,
                                   .events = c->clients[i].answer ? POLLOUT : POLLIN};
}

static void drain(int wake_fd)
{
    uint64_t n;

    while (read(wake_fd, &n, sizeof n) > 0)
        ;
}

void moat_ctl_run_once(struct moat_ctl_server *c, int timeout_ms)
{
    struct pollfd p[2 + MOAT_CTL_MAX_CLIENTS];
    uint64_t now = monotonic_ms();
    uint64_t left = c->turn_at > now ? c->turn_at - now : 0;

    if (timeout_ms < 0 || left < (uint64_t)timeout_ms)
        timeout_ms = (int)left;
    fill_polls(c, p, now);
    if (poll(p, 2 + MOAT_CTL_MAX_CLIENTS, timeout_ms) > 0) {
        for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++) {
            if (!p[2 + i].revents)
                continue;
            if (c->clients[i].answer)
                answer_again(&c->clients[i]);
            else
                read_client(c, &c->clients[i]);
        }
        if (p[1].revents)
            drain(p[1].fd);
        if (p[0].revents)
            accept_client(c, monotonic_ms());
    }
    now = monotonic_ms();
    if (now >= c->turn_at) {
        moat_engine_turn(c->engine);
        c->turn_at = now + MOAT_CTL_TURN_MS;
    }
    broadcast(c);
}

/* --- life --- */

static int unix_address(struct sockaddr_un *a, const char *path, const char *suffix, char *err,
                        size_t err_size)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    if (snprintf(a->sun_path, sizeof a->sun_path, "%s%s", path, suffix) >=
        (int)sizeof a->sun_path) {
        snprintf(err, err_size, "%s: too long for a socket's path", path);
        return -1;
    }
    return 0;
}

/* False if there is something at path that is not a dead process's socket. */
static bool may_replace(const struct sockaddr_un *at, char *err, size_t err_size)
{
    struct stat st;
    int fd, rc;

    if (lstat(at->sun_path, &st))
        return true;
    if (!S_ISSOCK(st.st_mode)) {
        snprintf(err, err_size, "%s: is there and is not a socket", at->sun_path);
        return false;
    }
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    rc = connect(fd, (const struct sockaddr *)at, sizeof *at) ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (rc == ECONNREFUSED || rc == ENOENT)
        return true;
    snprintf(err, err_size, "%s: is served by another process", at->sun_path);
    return false;
}

/* The socket gets its mode under another name, and its name when it is ready. */
static int listen_at(const struct sockaddr_un *at, const struct sockaddr_un *draft, char *err,
                     size_t err_size)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        goto fail;
    unlink(draft->sun_path);
    if (bind(fd, (const struct sockaddr *)draft, sizeof *draft))
        goto fail;
    if (chmod(draft->sun_path, 0600) || listen(fd, MOAT_CTL_MAX_CLIENTS) ||
        rename(draft->sun_path, at->sun_path))
        goto fail_bound;
    return fd;

fail_bound:
    unlink(draft->sun_path);
fail:
    snprintf(err, err_size, "%s: %s", at->sun_path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

struct moat_ctl_server *moat_ctl_create(const struct moat_ctl_conf *conf, char *err,
                                        size_t err_size)
{
    struct sockaddr_un at, draft;
    struct moat_ctl_server *c;

    if (unix_address(&at, conf->path, "", err, err_size) ||
        unix_address(&draft, conf->path, ".new", err, err_size) || !may_replace(&at, err, err_size))
        return NULL;
    c = aligned_alloc(16, (sizeof *c + 15) / 16 * 16);
    if (!c) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    memset(c, 0, sizeof *c);
    c->engine = conf->engine;
    c->uid = conf->uid;
    c->log = conf->log;
    memcpy(c->path, at.sun_path, sizeof c->path);
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        c->clients[i].fd = -1;
    c->listen_fd = listen_at(&at, &draft, err, err_size);
    if (c->listen_fd < 0) {
        free(c);
        return NULL;
    }
    return c;
}

void moat_ctl_destroy(struct moat_ctl_server *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd >= 0)
            drop_client(&c->clients[i]);
    close(c->listen_fd);
    unlink(c->path);
    free(c);
}
