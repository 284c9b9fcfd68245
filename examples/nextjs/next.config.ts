import type { NextConfig } from "next";

const config: NextConfig = {
  // Each instance keeps its cache in memory, as instances on different machines do.
  experimental: { isrFlushToDisk: false },
};

export default config;
