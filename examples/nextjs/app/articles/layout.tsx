import { NatsProvider } from "@/lib/nats";
import type { ReactNode } from "react";

export default function Layout({ children }: { children: ReactNode }) {
  return <NatsProvider>{children}</NatsProvider>;
}
