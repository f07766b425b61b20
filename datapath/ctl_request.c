/* SPDX-License-Identifier: Apache-2.0 */

/* What the requests do.  A handler gets a body of the right size and checks its fields (texts
 * end within their field, numbers in range) before the engine sees it. */

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moat/ruleset.h"

#include "ctl_private.h"
#include "engine.h"
#include "slot.h"
#include "transfer.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define WAIT_MS_MAX 10000 /* of moat_ctl_state: the vhost thread serves all ports */

/* --- checks --- */

int ctl_refuse(struct ctl_request *r, int rc, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->why, sizeof r->why, fmt, ap);
    va_end(ap);
    return rc;
}

int ctl_check_text(struct ctl_request *r, const char *name, const char *s, size_t size)
{
    const char *end = memchr(s, 0, size);

    if (!end)
        return ctl_refuse(r, -EINVAL, "%s does not end within its %zu bytes", name, size);
    for (; s < end; s++)
        if ((uint8_t)*s < 0x20 || *s == 0x7f)
            return ctl_refuse(r, -EINVAL, "%s has a control character", name);
    return 0;
}
#define CHECK_TEXT(R, NAME, FIELD) ctl_check_text(R, NAME, FIELD, sizeof(FIELD))

static int ctl_check_vnic(struct ctl_request *r, const char vnic[MOAT_ID_MAX])
{
    int rc = ctl_check_text(r, "vNIC id", vnic, MOAT_ID_MAX);

    return rc || vnic[0] ? rc : ctl_refuse(r, -EINVAL, "vNIC id is empty");
}

static int ctl_check_max(struct ctl_request *r, const char *name, uint64_t value, uint64_t max)
{
    return value <= max ? 0
                        : ctl_refuse(r, -EINVAL, "%s is %llu, at most %llu", name,
                                     (unsigned long long)value, (unsigned long long)max);
}

static int check_settings(struct ctl_request *r, const struct moat_settings *s)
{
    int rc = ctl_check_max(r, "on-missing-policy", s->on_missing_policy, MOAT_FAIL_ALLOW);

    rc = rc ? rc : ctl_check_max(r, "on-missing-state", s->on_missing_state, MOAT_FAIL_PICKUP);
    rc =
        rc ? rc : ctl_check_max(r, "on-unprotected-host", s->on_unprotected_host, MOAT_FAIL_PICKUP);
    rc = rc ? rc : ctl_check_max(r, "tcp-loose", s->tcp_loose, 1);
    rc = rc ? rc : ctl_check_max(r, "spoof", s->spoof, MOAT_SPOOF_LEARN);
    rc = rc ? rc : ctl_check_max(r, "vlan", s->vlan, MOAT_VLAN_INSPECT);
    rc = rc ? rc : ctl_check_max(r, "ra-guard", s->ra_guard, 1);
    rc = rc ? rc : ctl_check_max(r, "dhcp-guard", s->dhcp_guard, 1);
    rc = rc ? rc : ctl_check_max(r, "number of ethertypes", s->n_ethertypes, MOAT_ETHERTYPES_MAX);
    for (unsigned i = 0; !rc && i < s->n_ethertypes; i++)
        if (moat_ethertype_is_judged(s->ethertypes[i]))
            rc = ctl_refuse(r, -EINVAL, "ethertype 0x%04x cannot pass unjudged", s->ethertypes[i]);
    rc = rc ? rc : ctl_check_max(r, "enroll", s->enroll_s, MOAT_ENROLL_MAX);
    rc = rc ? rc : ctl_check_max(r, "pickup", s->pickup_s, MOAT_PICKUP_MAX);
    rc = rc ? rc : ctl_check_max(r, "hold", s->hold_ms, MOAT_HOLD_MAX);
    for (unsigned i = 0; !rc && i < MOAT_N_TIMERS; i++)
        rc = ctl_check_max(r, moat_timer_name(i), s->timers[i], MOAT_TIMER_MAX);
    rc = rc ? rc : ctl_check_max(r, "transfer-sessions", s->transfer_sessions, 1);
    return rc ? rc : ctl_check_max(r, "quarantine", s->quarantine, 1);
}

static int check_conf(struct ctl_request *r, const struct moat_slot_conf *c)
{
    int rc = ctl_check_vnic(r, c->vnic);

    rc = rc ? rc : CHECK_TEXT(r, "VM name", c->vm);
    rc = rc ? rc : CHECK_TEXT(r, "network", c->network);
    rc = rc ? rc : CHECK_TEXT(r, "path", c->path);
    rc = rc ? rc : ctl_check_max(r, "number of addresses", c->n_addrs, MOAT_ADDRS_MAX);
    rc = rc ? rc : ctl_check_max(r, "state", c->state, MOAT_N_SLOT_STATES - 1);
    for (unsigned i = 0; !rc && i < c->n_addrs; i++) {
        const struct moat_addr *a = &c->addrs[i];

        if ((a->family != 4 && a->family != 6) || a->plen > (a->family == 4 ? 32 : 128))
            rc = ctl_refuse(r, -EINVAL, "address %u has family %u and prefix length %u", i,
                            a->family, a->plen);
    }
    return rc ? rc : check_settings(r, &c->settings);
}

/* --- handlers: 0 with the answer in r, or negative errno with r->why --- */

static void *answer_with(struct ctl_request *r, size_t len)
{
    r->reply_len = len;
    return memset(r->reply, 0, len);
}

static int on_hello(struct moat_ctl_server *c, struct ctl_request *r)
{
    struct moat_engine *e = c->engine;
    const uint32_t *version = r->body;
    struct moat_ctl_hello *h;

    if (*version != MOAT_CTL_VERSION)
        return ctl_refuse(r, -EPROTONOSUPPORT, "this engine speaks version %u, not %u",
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
    h->events_lost = __atomic_load_n(&e->events.ring.lost, __ATOMIC_RELAXED);
    h->recovered_slots = e->recovered_slots;
    h->recovered_sessions = e->recovered_sessions;
    h->unclaimed = e->conf.unclaimed;
    h->replacements = e->replacements;
    h->gate_us = e->gate_us;
    snprintf(h->file, sizeof h->file, "%s", e->file);
    snprintf(h->engine, sizeof h->engine, "%s", MOAT_VERSION);
    snprintf(h->mapping, sizeof h->mapping, "%s", e->conf.mapping ? e->conf.mapping : "");
    return 0;
}

/* As many elements as fit; `next` says where to go on. */
static int on_slot_list(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_list *ask = r->body;
    struct moat_ctl_list_reply *list = answer_with(r, sizeof *list);
    struct moat_slot_info *info = (struct moat_slot_info *)(list + 1);
    const uint32_t max = (CTL_BODY_MAX - sizeof *list) / sizeof *info;

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

static int on_port_list(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_list *ask = r->body;
    struct moat_ctl_list_reply *list = answer_with(r, sizeof *list);
    struct moat_port_info *info = (struct moat_port_info *)(list + 1), next;
    const uint32_t max = (CTL_BODY_MAX - sizeof *list) / sizeof *info;
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

static int on_claim(struct moat_ctl_server *c, struct ctl_request *r)
{
    int rc = check_conf(r, r->body);

    return rc ? rc : moat_slot_claim(c->engine, r->body, r->why, sizeof r->why);
}

static int on_release(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_release(c->engine, ask->vnic, r->why, sizeof r->why);
}

static int on_state(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_state *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);

    rc = rc ? rc : ctl_check_max(r, "state", ask->state, MOAT_N_SLOT_STATES - 1);
    rc = rc ? rc : ctl_check_max(r, "precopy", ask->precopy, 1);
    rc = rc ? rc : ctl_check_max(r, "wait-ms", ask->wait_ms, WAIT_MS_MAX);
    rc = rc ? rc
            : ctl_check_max(r, "pickup-s", ask->pickup_s,
                            ask->state == MOAT_SLOT_ENROLLING ? MOAT_ENROLL_MAX : MOAT_PICKUP_MAX);
    if (!rc && ask->state == MOAT_SLOT_FREE)
        rc = ctl_refuse(r, -EINVAL, "a slot becomes free by its release only");
    return rc ? rc : moat_slot_set_state(c->engine, ask, r->why, sizeof r->why);
}

/* The sender could go on writing to what is not sealed. */
static int check_memfd(struct ctl_request *r, int fd, size_t *size)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;

    if (seals < 0 || (seals & SEALS) != SEALS)
        return ctl_refuse(r, -EPERM, "the ruleset is not in a memfd sealed against change");
    if (fstat(fd, &st))
        return ctl_refuse(r, -errno, "the ruleset's memfd: %s", strerror(errno));
    if (st.st_size <= 0 || st.st_size > MOAT_RULESET_VNIC_MAX)
        return ctl_refuse(r, -EFBIG, "a ruleset of %lld bytes, 1 to %u are possible",
                          (long long)st.st_size, MOAT_RULESET_VNIC_MAX);
    *size = (size_t)st.st_size;
    return 0;
}

static void *read_memfd(struct ctl_request *r, int fd, size_t size, int *rc)
{
    uint8_t *blob = malloc(size);
    size_t done = 0;

    if (!blob) {
        *rc = ctl_refuse(r, -ENOMEM, "out of memory");
        return NULL;
    }
    while (done < size) {
        ssize_t n = pread(fd, blob + done, size - done, (off_t)done);

        if (n <= 0) {
            *rc = ctl_refuse(r, n ? -errno : -EIO, "the ruleset's memfd cannot be read");
            free(blob);
            return NULL;
        }
        done += (size_t)n;
    }
    return blob;
}

static int on_ruleset(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);
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

static int on_ruleset_get(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);
    size_t size = 0;
    void *blob;

    if (rc)
        return rc;
    if (moat_slot_find(c->engine, ask->vnic) < 0)
        return ctl_refuse(r, -ENOENT, "no slot for vNIC %s", ask->vnic);
    blob = moat_slot_ruleset(c->engine, ask->vnic, &size);
    if (!blob)
        return errno == ENOMEM ? ctl_refuse(r, -ENOMEM, "out of memory")
                               : ctl_refuse(r, -ENOENT, "vNIC %s has no ruleset", ask->vnic);
    r->reply_fd = make_memfd(blob, size);
    free(blob);
    return r->reply_fd >= 0 ? 0 : ctl_refuse(r, -EIO, "no memfd for the ruleset");
}

static int on_sessions(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_sessions *ask = r->body;
    int rc = CHECK_TEXT(r, "vNIC id", ask->vnic);

    if (rc)
        return rc;
    rc = moat_transfer_export(c->engine, ask, r->reply, CTL_BODY_MAX);
    if (rc == -ENOENT)
        return ctl_refuse(r, rc, "no slot for vNIC %s", ask->vnic);
    if (rc < 0)
        return ctl_refuse(r, rc, "sessions cannot be read: %s", strerror(-rc));
    r->reply_len = (size_t)rc;
    return 0;
}

static int on_import(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_import *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);

    rc = rc ? rc : ctl_check_max(r, "same-policy", ask->same_policy, 1);
    rc = rc ? rc
            : ctl_check_max(r, "number of records", ask->n,
                            (r->len - sizeof *ask) / (4 + MOAT_SES_LEN4));
    if (rc)
        return rc;
    struct moat_ctl_import_reply *done = answer_with(r, sizeof *done);
    return moat_transfer_import(c->engine, ask, ask + 1, r->len - sizeof *ask, done, r->why,
                                sizeof r->why);
}

static int on_counters(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic), slot;

    if (rc)
        return rc;
    slot = moat_slot_find(c->engine, ask->vnic);
    if (slot < 0)
        return ctl_refuse(r, -ENOENT, "no slot for vNIC %s", ask->vnic);
    moat_engine_counters(c->engine, (uint32_t)slot,
                         answer_with(r, MOAT_N_COUNTERS * sizeof(uint64_t)));
    return 0;
}

static int on_rule_hits(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_hits *ask = r->body;
    struct moat_ctl_list_reply *list;
    int rc = ctl_check_vnic(r, ask->vnic);

    if (rc)
        return rc;
    list = answer_with(r, sizeof *list);
    rc = moat_slot_hits(c->engine, ask->vnic, ask->first,
                        (CTL_BODY_MAX - sizeof *list) / sizeof(struct moat_rule_hit),
                        (struct moat_rule_hit *)(list + 1), &list->next);
    if (rc < 0)
        return ctl_refuse(r, rc, "no slot for vNIC %s", ask->vnic);
    list->n = (uint32_t)rc;
    r->reply_len += list->n * sizeof(struct moat_rule_hit);
    return 0;
}

static int on_subscribe(struct moat_ctl_server *c, struct ctl_request *r)
{
    (void)c;
    r->client->subscribed = true;
    return 0;
}

static int on_handed_over(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_handed_over(c->engine, ask->vnic, r->why, sizeof r->why);
}

static int on_flush(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_vnic *ask = r->body;
    int rc = ctl_check_vnic(r, ask->vnic);

    return rc ? rc : moat_slot_flush(c->engine, ask->vnic, r->why, sizeof r->why);
}

static int on_replace(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_replace *ask = r->body;
    int rc = CHECK_TEXT(r, "file", ask->file);

    if (!rc && ask->file[0] && ask->file[0] != '/')
        rc = ctl_refuse(r, -EINVAL, "%s is not an absolute path", ask->file);
    if (!rc && !c->exchange)
        rc = ctl_refuse(r, -EOPNOTSUPP, "this engine cannot be replaced");
    if (!rc && c->exchanging)
        rc = ctl_refuse(r, -EBUSY, "the engine is being replaced already");
    if (!rc)
        rc = c->exchange->begin(ask->file, r->why, sizeof r->why);
    if (rc)
        return rc;
    c->exchanging = true;
    r->client->waits = true;
    r->client->xid = r->head.xid;
    r->client->version = r->head.version;
    r->later = true;
    return 0;
}

const struct ctl_handler ctl_handlers[CTL_N_TYPES] = {
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
    [MOAT_CTL_REPLACE] = {"replace", on_replace, sizeof(struct moat_ctl_replace), false, 0},
    [MOAT_CTL_TRACE] = {"trace", ctl_on_trace, sizeof(struct moat_ctl_trace), true, 0},
};
