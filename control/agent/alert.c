/* SPDX-License-Identifier: Apache-2.0 */

#include <config.h>

#include "alert.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "moat/ctl.h"
#include "openvswitch/shash.h"
#include "openvswitch/token-bucket.h"
#include "openvswitch/vlog.h"
#include "timeval.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(alert);

#define AGAIN_MS 60000
#define MAX_REMEMBERED 512
#define ENGINE_RATE 50 /* rows a second, over all vNICs: the engine limits each */
#define ENGINE_BURST 200

static struct shash said = SHASH_INITIALIZER(&said); /* words -> long long when */
/* Logged packets, and all else: a VM that makes many log lines hides nothing of itself. */
static struct limit {
    struct token_bucket bucket;
    bool ready;
    unsigned suppressed;
} limits[2];

static bool said_before(const char *words)
{
    long long now = time_msec(), *when = shash_find_data(&said, words);

    if (when && now - *when < AGAIN_MS)
        return true;
    if (!when) {
        if (shash_count(&said) >= MAX_REMEMBERED)
            shash_clear_free_data(&said);
        when = xmalloc(sizeof *when);
        shash_add(&said, words, when);
    }
    *when = now;
    return false;
}

static void say(enum cluster_severity severity, const char *kind, const char *vnic, const char *vm,
                const char *message)
{
    struct cluster_event ev = {
        .severity = severity, .kind = kind, .vnic = vnic, .vm = vm, .message = message};

    cluster_event(&ev);
    VLOG(severity >= SEV_WARNING ? VLL_WARN : VLL_INFO, "%s%s%s: %s", vnic, *vnic ? ": " : "", kind,
         message);
}

void alert(enum cluster_severity severity, const char *kind, const char *vnic, const char *vm,
           const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    char *message = xvasprintf(fmt, ap);
    va_end(ap);
    char *words = xasprintf("%s|%s|%s", kind, vnic, message);
    if (!said_before(words))
        say(severity, kind, vnic, vm, message);
    free(words);
    free(message);
}

void alert_always(enum cluster_severity severity, const char *kind, const char *vnic,
                  const char *vm, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    char *message = xvasprintf(fmt, ap);
    va_end(ap);
    say(severity, kind, vnic, vm, message);
    free(message);
}

static void format_address(const struct moat_flow *f, const uint8_t *a, struct smap *d,
                           const char *key)
{
    char buf[INET6_ADDRSTRLEN];

    smap_add(d, key, inet_ntop(f->family == MOAT_FAM_IP6 ? AF_INET6 : AF_INET, a, buf, sizeof buf));
}

static void flow_details(const struct moat_event *ev, struct smap *d)
{
    const struct moat_flow *f = &ev->flow;

    smap_add(d, "direction", f->dir == MOAT_FROM_VM ? "from-vm" : "to-vm");
    smap_add(d, "verdict",
             ev->value == MOAT_ALLOW    ? "allow"
             : ev->value == MOAT_REJECT ? "reject"
                                        : "drop");
    smap_add(d, "reason", moat_reason_name(ev->reason));
    smap_add_format(d, "rule", "%u", ev->rule);
    smap_add_format(d, "generation", "%llu", (unsigned long long)ev->generation);
    smap_add(d, "family",
             f->family == MOAT_FAM_IP4   ? "ipv4"
             : f->family == MOAT_FAM_IP6 ? "ipv6"
             : f->family == MOAT_FAM_ARP ? "arp"
                                         : "other");
    if (!f->family)
        return;
    smap_add_format(d, "protocol", "%u", f->proto);
    format_address(f, f->local, d, "local");
    format_address(f, f->remote, d, "remote");
    smap_add_format(d, "source-port", "%u", f->sport);
    smap_add_format(d, "destination-port", "%u", f->dport);
}

struct words {
    const char *kind, *message;
    enum cluster_severity severity;
};

/* What the event's number counts. */
static const char *value_name(const struct moat_event *ev)
{
    switch (ev->type) {
    case MOAT_EV_ENROLLED:
        return "packets";
    case MOAT_EV_CUT:
        return "sessions";
    case MOAT_EV_REPLACED:
        return "packets-waited-us";
    default:
        return "value";
    }
}

/* Events without words are not for people: they drive the state machine. */
static struct words words_for(const struct moat_event *ev)
{
    switch (ev->type) {
    case MOAT_EV_PACKET:
        return (struct words){"packet", "a logged packet", SEV_INFO};
    case MOAT_EV_QUOTA:
        return (struct words){"quota",
                              ev->reason ? moat_reason_text(ev->reason) : "a quota was reached",
                              SEV_WARNING};
    case MOAT_EV_LEARNT:
        return (struct words){"address-learnt",
                              "anti-spoofing learns an address that the VM uses as its own",
                              SEV_NOTICE};
    case MOAT_EV_ENROLLED:
        return (struct words){"enrolled",
                              ev->value ? "the enrolment is over and policy is enforced; packets "
                                          "passed that it refuses from now on"
                                        : "the enrolment is over and policy is enforced; it would "
                                          "have refused nothing",
                              SEV_NOTICE};
    case MOAT_EV_CUT:
        if (ev->value)
            return (struct words){"sessions-cut", "quarantine has ended sessions", SEV_NOTICE};
        break;
    case MOAT_EV_REPLACED:
        return (struct words){"engine-replaced", "another engine took over", SEV_NOTICE};
    case MOAT_EV_REFUSED:
        return (struct words){"refused", "the fast path refused a request or a record",
                              SEV_WARNING};
    case MOAT_EV_HOLD_EXPIRED:
        return (struct words){"hold-expired", "the VM runs and its state has not come in time",
                              SEV_WARNING};
    case MOAT_EV_WAIT_EXPIRED:
        return (struct words){"wait-expired",
                              "the destination did not confirm in time; the VM's QEMU went on",
                              SEV_WARNING};
    case MOAT_EV_REPLUGGED:
        return (struct words){"replugged",
                              "the port was deleted and plugged again: blocked until "
                              "it is claimed",
                              SEV_NOTICE};
    case MOAT_EV_PORT:
        if (!ev->vnic[0])
            return (struct words){"port", "a new vhost-user port, blocked until it is claimed",
                                  SEV_INFO};
        break;
    case MOAT_EV_OPENED:
        return (struct words){"opened", "an arrived vNIC passes traffic", SEV_INFO};
    default:
        break;
    }
    return (struct words){NULL, NULL, SEV_INFO};
}

/* The engine's own words, or ours with what they are about.  The caller frees it. */
static char *message_of(const struct moat_event *ev, const struct words *w)
{
    const struct moat_flow *f = &ev->flow;
    char buf[INET6_ADDRSTRLEN];

    if (ev->text[0])
        return xstrdup(ev->text);
    if (ev->type == MOAT_EV_LEARNT)
        return xasprintf(
            "%s: %s", w->message,
            inet_ntop(f->family == MOAT_FAM_IP6 ? AF_INET6 : AF_INET, f->local, buf, sizeof buf));
    if ((ev->type == MOAT_EV_ENROLLED || ev->type == MOAT_EV_CUT) && ev->value)
        return xasprintf("%s: %lld", w->message, (long long)ev->value);
    return xstrdup(w->message);
}

void alert_engine(const struct moat_event *ev, const char *vm)
{
    struct words w = words_for(ev);

    if (!w.kind)
        return;
    struct limit *l = &limits[ev->type == MOAT_EV_PACKET];
    if (!l->ready) {
        token_bucket_init(&l->bucket, ENGINE_RATE, ENGINE_BURST);
        l->ready = true;
    }
    if (!token_bucket_withdraw(&l->bucket, 1)) {
        l->suppressed++;
        return;
    }
    struct smap details = SMAP_INITIALIZER(&details);
    if (l->suppressed) {
        smap_add_format(&details, "suppressed-before", "%u", l->suppressed);
        l->suppressed = 0;
    }
    if (ev->path[0])
        smap_add(&details, "path", ev->path);
    if (ev->type == MOAT_EV_PACKET) {
        flow_details(ev, &details);
    } else {
        if (ev->reason)
            smap_add(&details, "reason", moat_reason_name(ev->reason));
        if (ev->value)
            smap_add_format(&details, value_name(ev), "%lld", (long long)ev->value);
        if (ev->type == MOAT_EV_LEARNT)
            format_address(&ev->flow, ev->flow.local, &details, "address");
    }
    char *message = message_of(ev, &w);
    struct cluster_event row = {.severity = w.severity,
                                .time_us = ev->time_us,
                                .kind = w.kind,
                                .vnic = ev->vnic,
                                .vm = vm,
                                .message = message,
                                .details = &details};
    cluster_event(&row);
    smap_destroy(&details);
    free(message);
}

void alert_exit(void)
{
    shash_destroy_free_data(&said);
}
