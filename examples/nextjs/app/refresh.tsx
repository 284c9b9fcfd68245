"use client";
import { useNatsStatus, useRelayed } from "@/lib/nats";
import { useRouter } from "next/navigation";
import { useEffect, useState, useTransition } from "react";

/** Refreshes the page when a message about it has been relayed: its data is fresh by then. */
export function RefreshWhenRelayed({ subject, revision }: { subject: string; revision?: number }) {
  const { refresh, state } = useRefresh(revision);
  useRelayed(subject, (message) => refresh(message?.json<{ revision: number }>().revision));
  return <p className={`state ${state}`}>{useNatsStatus() === "connected" ? state : "connecting"}</p>;
}

/** For comparison: refreshes the page when the backend says so, and it may be too early. */
export function RefreshWhenSaved({ events, revision }: { events: string; revision: number }) {
  const { refresh, state } = useRefresh(revision);
  useEffect(() => {
    const source = new EventSource(events);
    source.onmessage = ({ data }) => refresh(JSON.parse(data).revision);
    return () => source.close();
  }, [events]);
  return <p className={`state ${state}`}>{state}</p>;
}

/** Refreshes, and says whether the page shows the newest revision that it has heard of. */
function useRefresh(shown = 0) {
  const router = useRouter();
  const [heard, setHeard] = useState(0);
  const [isPending, startTransition] = useTransition();
  const refresh = (revision = 0) => {
    setHeard((before) => Math.max(before, revision));
    startTransition(() => router.refresh());
  };
  return { refresh, state: isPending ? "refreshing" : shown && heard > shown ? "stale" : "fresh" };
}
