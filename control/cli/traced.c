/* SPDX-License-Identifier: Apache-2.0 */
/* Judged packets: see traced.h. */

#include "traced.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "moat/session.h"
#include "openvswitch/dynamic-string.h"
#include "packet.h"
#include "text.h"
#include "util.h"

bool traced_has_rule(const struct moat_traced *t)
{
    switch (t->by) {
    case MOAT_BY_RULE:
    case MOAT_BY_QUOTA:
        return true;
    case MOAT_BY_SESSION:
    case MOAT_BY_RELATED:
        return t->has_session && !(t->session_flags & MOAT_SES_F_FAIL_OPEN);
    case MOAT_BY_FRAGMENT:
        return t->rule;
    case MOAT_BY_ENROLLING:
        return t->reason == MOAT_R_RULE || t->reason == MOAT_R_DEFAULT;
    default:
        return false;
    }
}

/* What let it pass, or why it was refused. */
static char *why_text(const struct moat_traced *t, bool explain)
{
    const char *colon = explain && t->reason ? ": " : "";
    const char *text = explain && t->reason ? moat_reason_text(t->reason) : "";

    if (t->by == MOAT_BY_ENROLLING)
        return xasprintf("enrolling, else %s%s%s", moat_reason_name(t->reason), colon, text);
    if (t->verdict == MOAT_ALLOW)
        return xstrdup(moat_by_name(t->by));
    return xasprintf("%s%s%s", moat_reason_name(t->reason), colon, text);
}

static char *session_text(const struct moat_traced *t)
{
    char *states, *age, *s;

    if (!t->has_session)
        return xstrdup("");
    states = session_states(t->flow.proto, t->side_state[MOAT_FROM_VM], t->side_state[MOAT_TO_VM]);
    age = text_duration(t->age_s);
    s = xasprintf("%s %s", states, age);
    free(states);
    free(age);
    return s;
}

static struct json *session_json(const struct moat_traced *t)
{
    struct json *j;

    if (!t->has_session)
        return json_null_create();
    j = json_object_create();
    json_object_put_string(j, "opened_by", t->session_dir == MOAT_FROM_VM ? "vm" : "remote");
    json_object_put_string(j, "local_state",
                           session_state(t->flow.proto, t->side_state[MOAT_FROM_VM]));
    json_object_put_string(j, "remote_state",
                           session_state(t->flow.proto, t->side_state[MOAT_TO_VM]));
    json_object_put(j, "flags", session_flags_json(t->session_flags, NULL));
    json_object_put(j, "age_s", json_integer_create(t->age_s));
    json_object_put(j, "packets_from_vm", json_integer_create((int64_t)t->packets[MOAT_FROM_VM]));
    json_object_put(j, "packets_to_vm", json_integer_create((int64_t)t->packets[MOAT_TO_VM]));
    json_object_put(j, "bytes_from_vm", json_integer_create((int64_t)t->bytes[MOAT_FROM_VM]));
    json_object_put(j, "bytes_to_vm", json_integer_create((int64_t)t->bytes[MOAT_TO_VM]));
    return j;
}

static void put_rule(struct out *o, const struct moat_traced *t, const char *rule_text)
{
    bool has_rule = traced_has_rule(t);

    if (!has_rule)
        rule_text = NULL;
    out_value(o, "rule", has_rule ? json_integer_create(t->rule) : json_null_create(), NULL);
    out_value(o, "rule_text", rule_text ? json_text(rule_text) : json_null_create(), NULL);
    if (has_rule)
        out_value(o, "rule_label", NULL,
                  rule_text ? xasprintf("%u: %s", t->rule, rule_text) : xasprintf("%u", t->rule));
    else if (t->has_session && t->session_flags & MOAT_SES_F_FAIL_OPEN)
        out_value(o, "rule_label", NULL, xstrdup("(fail mode)"));
}

void traced_put(struct out *o, const struct moat_traced *t, const char *rule_text, bool explain)
{
    char *packet = packet_text(&t->flow, t->tcp_flags);

    if (t->vlan) {
        char *tagged = xasprintf("vlan %u %s", t->vlan, packet);

        free(packet);
        packet = tagged;
    }
    out_string(o, "direction", packet_direction(t->flow.dir));
    out_value(o, "packet_text", NULL, packet);
    out_integer(o, "frame_len", t->frame_len);
    out_string(o, "verdict", packet_verdict(t->verdict));
    out_value(o, "why_text", NULL, why_text(t, explain));
    out_value(o, "session_text", NULL, session_text(t));
    out_value(o, "flow", t->flow.family ? packet_flow_json(&t->flow) : json_null_create(), NULL);
    out_integer(o, "vlan", t->vlan);
    out_integer(o, "tcp_flags", t->tcp_flags);
    out_string(o, "reason", moat_reason_name(t->reason));
    out_string(o, "by", moat_by_name(t->by));
    out_string(o, "slot_state", moat_slot_state_name(t->slot_state));
    out_value(o, "session", session_json(t), NULL);
    put_rule(o, t, rule_text);
}

char *traced_comment(const struct moat_traced *t, const char *rule_text)
{
    struct ds s = DS_EMPTY_INITIALIZER;
    char *why = why_text(t, true), *session = session_text(t), *plain;

    ds_put_format(&s, "%s %s", packet_verdict(t->verdict), packet_direction(t->flow.dir));
    ds_put_format(&s, t->verdict == MOAT_ALLOW ? " by %s" : ": %s", why);
    if (traced_has_rule(t)) {
        ds_put_format(&s, "; rule %u", t->rule);
        if (rule_text)
            ds_put_format(&s, ": %s", rule_text);
    }
    if (t->has_session)
        ds_put_format(&s, "; session %s", session);
    ds_put_format(&s, "; generation %" PRIu64, t->generation);
    if (t->slot_state != MOAT_SLOT_ACTIVE)
        ds_put_format(&s, "; slot %s", moat_slot_state_name(t->slot_state));
    plain = text_plain(ds_cstr(&s));
    ds_destroy(&s);
    free(why);
    free(session);
    return plain;
}
